"""Contamination: find benchmark items in the rows that a model is trained on."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# Kana and Han characters, without the punctuation of their blocks.
_CJK = (
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]")
_ASCII_WORDS = "".join(c.lower() if c.isalnum() else " " for c in map(chr, range(128)))

_GRAM = 13  # words
_MIN_WORDS = 5  # of a text that is compared as a whole
_MIN_CONTENT_WORDS_TEXT = 3  # different ones, in such a text
_MIN_CONTENT_WORDS_GRAM = 6  # different ones; 7 would miss HumanEval/53 inside a longer row
_MAX_ITEMS = 10  # of one benchmark that may share a phrase


@dataclass(frozen=True)
class Match:
    """A benchmark item found in a training row.

    Attributes:
        benchmark: The benchmark's name.
        item_id: The item.
        kind: ``exact`` if a whole message is a text of the item, else ``13-gram``.
        words: The shared words, normalised and joined by spaces.
    """

    benchmark: str
    item_id: str
    kind: Literal["exact", "13-gram"]
    words: str


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and white space.

    A word is a run of letters and digits after NFKC, so code gives the same words however it is
    spaced, and ``snake_case`` gives the words of prose. In languages without spaces a sentence
    would be one word, so every Kana or Han character is a word of its own.

    >>> normalized_words("def has_close(xs: List[float],t=0.5)")
    ['def', 'has', 'close', 'xs', 'list', 'float', 't', '0', '5']
    """
    if text.isascii():  # the same result, four times faster
        return text.translate(_ASCII_WORDS).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class ItemIndex:
    """Finds benchmark items in training rows: whole, or 13 consecutive words of them.

    Deliberately strict, as in GPT-3: 13 shared words can also be a stock phrase, so read
    ``Match.words`` before calling an item leaked. Departures from the source: words come from
    ``normalized_words``, and a phrase is ignored

    * if more than 10 items of a benchmark share it, or more than two and more than half of a
      smaller one: it is a preamble, and would flag every row written in that style. The source
      counts training documents instead, which is impossible row by row;
    * if it has fewer than 6 different words except numbers and single letters: ``0, 0, 0, ...``,
      ``1, 2, 3, ...`` and the loops of a bubble sort occur in all kinds of code.

    A text shorter than 13 words is found only as a whole message, and only if it has at least 5
    words, 3 of them different and neither numbers nor single letters: "Hi" or "[1, 2, 3, 4, 5]"
    are no evidence. Messages are searched one by one, so no phrase spans two of them.

    Source: Brown et al. 2020, Language Models are Few-Shot Learners, appendix C.

    Args:
        benchmarks: Texts (prompt, worked solution) by benchmark and item id. Leave out short
            answers, and join a short function with its prompt: without operators many functions
            are the same words, and rows can share an answer without the question.

    Attributes:
        digest: SHA-256 of the texts as hex, independent of the order of the mappings.
    """

    def __init__(self, benchmarks: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        content = {
            benchmark: {item_id: list(texts) for item_id, texts in items.items()}
            for benchmark, items in benchmarks.items()
        }
        self.digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._texts: dict[str, tuple[str, str]] = {}  # words of a text: benchmark, item id
        self._grams: dict[str, tuple[str, str]] = {}
        for benchmark in sorted(benchmarks):
            self._add(benchmark, benchmarks[benchmark])
        # Every fourth word of each gram: sets of these are compared without a Python loop, which
        # rules out most rows.
        self._probes = {tuple(gram.split()[::4]) for gram in self._grams}

    def find(self, texts: Sequence[str]) -> Match | None:
        """Return a benchmark item that the messages of one row contain; whole texts win.

        Of items that share a phrase, the first by benchmark and id is returned.
        """
        messages = [normalized_words(text) for text in texts]
        for words in messages:
            text = " ".join(words)
            if text in self._texts:
                return Match(*self._texts[text], "exact", text)
        for words in messages:
            if self._probes.isdisjoint(zip(words, words[4:], words[8:], words[12:], strict=False)):
                continue
            for gram in _grams(words):
                if gram in self._grams:
                    return Match(*self._grams[gram], "13-gram", gram)
        return None

    def _add(self, benchmark: str, items: Mapping[str, Sequence[str]]) -> None:
        text_items: dict[str, list[str]] = {}
        gram_items: dict[str, list[str]] = {}
        for item_id in sorted(items):
            messages = [normalized_words(text) for text in items[item_id]]
            for text in {" ".join(words) for words in messages if len(words) >= _MIN_WORDS}:
                text_items.setdefault(text, []).append(item_id)
            for gram in {gram for words in messages for gram in _grams(words)}:
                gram_items.setdefault(gram, []).append(item_id)
        limit = min(_MAX_ITEMS, max(2, len(items) // 2))
        for phrases, min_content, found in (
            (text_items, _MIN_CONTENT_WORDS_TEXT, self._texts),
            (gram_items, _MIN_CONTENT_WORDS_GRAM, self._grams),
        ):
            for phrase, item_ids in phrases.items():
                if len(item_ids) <= limit and _num_content_words(phrase.split()) >= min_content:
                    found.setdefault(phrase, (benchmark, item_ids[0]))


def _grams(words: Sequence[str]) -> list[str]:
    return [" ".join(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]


def _num_content_words(words: Sequence[str]) -> int:
    """Count different words except numbers and single letters; a Han character is a word."""
    return len({w for w in words if not w.isdecimal() and (len(w) > 1 or not w.isascii())})
