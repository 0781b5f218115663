"""Count words as the official checker does: all words by one rule, capitals by another."""

import re

from sft_lab.evaluation.benchmarks.ifeval.sentences import split_sentences

_PAD = r" \g<0> "
_FUSED = ("can not", "d 'ye", "gim me", "gon na", "got ta", "lem me", "more 'n", r"wan na(?=\s)")
# The order matters: a clitic is split off only before a space, which earlier rules insert.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[«“\u2018„]|`+", _PAD),
        (r"(?i)'(?![mtsdn])(?=\w\b)", "' "),
        (r"(?<=[^.])\.(?=[\])}>\"'»”\u2019 ]*+\s*$)", _PAD),
        (r"([:,])(\D|$)", r" \1 \2"),
        (r"\.{2,}|[;@#$%&?!]", _PAD),
        (r"(?<=[^'])' ", " ' "),
        (r"[*\[\](){}<>]|--", _PAD),
        (r"[»”\u2019\"]|''", _PAD),
        (r"\s+|\Z", " "),
        (r"(?<=[^' ])('[smdSMD]|') ", r" \1 "),
        (r"(?<=[^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r" \1 "),
        *((rf"(?i)\b({word.replace(' ', ')(')})\b", r" \1 \2 ") for word in _FUSED),
        (r"(?i)(?<!\S)('t)(is|was)\b", r"\1 \2 "),
    )
]


def count_words(text: str) -> int:
    """Return the number of runs of letters, digits and underscores.

    >>> count_words("It's well-known: 3.5")
    6
    """
    return len(re.findall(r"\w+", text))


def count_capital_words(text: str) -> int:
    """Return the number of words with capital letters only, at least one letter each.

    Words are split as by NLTK 3.9's word tokenizer, sentence by sentence: hyphens join, clitics are
    separate words. Only its rules that can separate two letters are applied.

    >>> count_capital_words("A STATE-OF-THE-ART lab in the USA. IT'S 2x")
    5
    """
    return sum(word.isupper() for s in split_sentences(text) for word in _split_words(s))


def _split_words(sentence: str) -> list[str]:
    for pattern, replacement in _RULES:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()
