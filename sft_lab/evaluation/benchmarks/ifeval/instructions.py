"""Check the 25 instructions of IFEval, by one function each.

Every function takes the text and, by name, the kwargs of a data set's row; their types are those
that ``arguments`` checks. The patterns match what those of the official checker match, so that
verdicts agree even where one would judge otherwise, in time that grows with the text and not with
its square. No function sees an empty text, which ``grade`` fails before.

Source: Zhou et al., 2023, Instruction-Following Evaluation for Large Language Models, and its
checker, instruction_following_eval in google-research.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable

import regex

from sft_lab.evaluation.benchmarks.ifeval.arguments import Language, Letter, Pattern, Relation
from sft_lab.evaluation.benchmarks.ifeval.language import detect_language
from sft_lab.evaluation.benchmarks.ifeval.sentences import split_sentences
from sft_lab.evaluation.benchmarks.ifeval.words import count_capital_words, count_words

Check = Callable[..., bool]
PATTERN_TIMEOUT_S = 1.0
"""Time limit of each search for patterns of an item file, which may be as slow as they like."""

INSTRUCTIONS: dict[str, Check] = {}


def _instruction(instruction_id: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        INSTRUCTIONS[instruction_id] = check
        return check

    return register


def _occurs(patterns: Iterable[str], text: str) -> Iterable[bool]:
    """Yield whether each pattern of an item file occurs in a text, in any case.

    Raises:
        TimeoutError: If one takes longer than ``PATTERN_TIMEOUT_S``.
    """
    for pattern in patterns:
        found = regex.search(pattern, text, regex.IGNORECASE, timeout=PATTERN_TIMEOUT_S)
        yield found is not None


def _compare(count: int, relation: Relation, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


@_instruction("keywords:existence")
def _keywords(text: str, *, keywords: list[Pattern]) -> bool:
    """Return whether every keyword occurs, within a word or not, in any case."""
    return all(_occurs(keywords, text))


@_instruction("keywords:frequency")
def _keyword_frequency(text: str, *, keyword: Pattern, frequency: int, relation: Relation) -> bool:
    """Compare the occurrences of the keyword, within words too, in any case."""
    found = regex.findall(keyword.strip(), text, regex.IGNORECASE, timeout=PATTERN_TIMEOUT_S)
    return _compare(len(found), relation, frequency)


@_instruction("keywords:forbidden_words")
def _forbidden_words(text: str, *, forbidden_words: list[Pattern]) -> bool:
    """Return whether none of the words occurs as a separate word, in any case."""
    return not any(_occurs((rf"\b{word}\b" for word in forbidden_words), text))


@_instruction("keywords:letter_frequency")
def _letter_frequency(
    text: str, *, letter: Letter, let_frequency: int, let_relation: Relation
) -> bool:
    """Compare the occurrences of the letter, which may be a mark, in any case."""
    return _compare(Counter(text.lower())[letter.lower()], let_relation, let_frequency)


@_instruction("language:response_language")
def _response_language(text: str, *, language: Language) -> bool:
    """Return whether the text is in the language, or its language is unknown."""
    return detect_language(text) in (language, None)


@_instruction("length_constraints:number_sentences")
def _number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    return _compare(len(split_sentences(text)), relation, num_sentences)


@_instruction("length_constraints:number_words")
def _number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    return _compare(count_words(text), relation, num_words)


@_instruction("length_constraints:number_paragraphs")
def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Return whether dividers ``***`` separate so many paragraphs, none of them blank.

    A divider before the first and after the last is allowed.
    """
    paragraphs = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(paragraphs[1:-1]) and sum(paragraphs) == num_paragraphs


@_instruction("length_constraints:nth_paragraph_first_word")
def _nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Return whether there are so many paragraphs, and the n-th begins with the word.

    Blank lines separate paragraphs. An empty paragraph between two blank lines does not count
    towards their number, but does count to find the n-th.
    """
    paragraphs = [part.strip() for part in text.split("\n\n")]
    if sum(map(bool, paragraphs)) != num_paragraphs or not paragraphs[nth_paragraph - 1]:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


@_instruction("detectable_content:number_placeholders")
def _number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """Return whether at least so many square brackets occur, each closed on its line."""
    closed = (part for line in text.split("\n") for part in line.split("]")[:-1])
    return sum("[" in part for part in closed) >= num_placeholders


@_instruction("detectable_content:postscript")
def _postscript(text: str, *, postscript_marker: Pattern) -> bool:
    """Return whether the marker occurs, in any case; the two usual ones may contain a space."""
    marker = postscript_marker.strip()
    usual = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = usual.get(marker, marker.lower())
    return regex.search(pattern, text.lower(), timeout=PATTERN_TIMEOUT_S) is not None


@_instruction("detectable_format:number_bullet_lists")
def _number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Return whether so many lines begin with one asterisk or a hyphen, ``---`` included."""
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    hyphens = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(hyphens) == num_bullets


@_instruction("detectable_format:constrained_response")
def _constrained_response(text: str) -> bool:
    """Return whether one of the three answers occurs literally, with or without other text."""
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


@_instruction("detectable_format:number_highlighted_sections")
def _number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """Count spans of one line between asterisks, ``**two**`` included."""
    single = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _multiple_sections(text: str, *, section_spliter: Pattern, num_sections: int) -> bool:
    """Count headings: the word, at most one space, digits."""
    heading = rf"\s?{section_spliter.strip()}\s?\d+\s?"
    return len(regex.split(heading, text, timeout=PATTERN_TIMEOUT_S)) - 1 >= num_sections


@_instruction("detectable_format:json_format")
def _json_format(text: str) -> bool:
    """Return whether the text is JSON, fenced or not.

    JSON nested too deep for Python's parser, on which the official checker fails, is not followed.
    """
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:title")
def _title(text: str) -> bool:
    """Return whether double angle brackets enclose text on one line."""
    spans = ((line, line.find("<<"), line.rfind(">>")) for line in text.split("\n"))
    titles = (line[start : end + 2] for line, start, end in spans if 0 <= start < end - 2)
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


@_instruction("combination:two_responses")
def _two_responses(text: str) -> bool:
    """Return whether dividers ``******`` separate two different responses.

    A divider before the first and after the last is allowed.
    """
    parts = [part.strip() for part in text.split("******")]
    responses = [part for part in parts if part]
    return all(parts[1:-1]) and len(responses) == 2 and responses[0] != responses[1]


@_instruction("combination:repeat_prompt")
def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """Return whether the text begins with the prompt, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_instruction("startend:end_checker")
def _end_checker(text: str, *, end_phrase: str) -> bool:
    """Return whether the text, stripped of space and then double quotes, ends with the phrase."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_instruction("startend:quotation")
def _quotation(text: str) -> bool:
    """Return whether straight double quotes enclose the text."""
    return re.fullmatch(r'".*"', text.strip(), re.DOTALL) is not None


@_instruction("change_case:capital_word_frequency")
def _capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> bool:
    return _compare(count_capital_words(text), capital_relation, capital_frequency)


@_instruction("change_case:english_capital")
def _english_capital(text: str) -> bool:
    """Return whether the text has capitals only, and is in English or of unknown language."""
    return text.isupper() and detect_language(text) in ("en", None)


@_instruction("change_case:english_lowercase")
def _english_lowercase(text: str) -> bool:
    """Return whether the text has no capitals, and is in English or of unknown language."""
    return text.islower() and detect_language(text) in ("en", None)


@_instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text
