"""Tokenises texts many of which begin alike, as a conversation and its own beginnings do."""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any


class PrefixEncoder:
    """Encodes texts in pieces, so that what several begin with is tokenised once.

    Args:
        tokenizer: A transformers tokenizer.
        rendered: A conversation as its template renders it; the special tokens in it are where
            texts may be cut.
    """

    def __init__(self, tokenizer: Any, rendered: str) -> None:
        self._tokenizer = tokenizer
        self._borders = _borders(tokenizer, rendered)

    def encode(self, texts: Iterable[str], pieces: dict[str, list[int]]) -> dict[str, list[int]]:
        """Return the token ids of every text, by one call over the pieces not yet known.

        Args:
            texts: Repeats cost nothing.
            pieces: The ids of pieces met before; takes up the new ones.
        """
        cut = {text: self._cut(text) for text in texts}
        new = [piece for piece in dict.fromkeys(chain(*cut.values())) if piece not in pieces]
        if new:
            encoded = self._tokenizer(
                new,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            pieces.update(zip(new, encoded["input_ids"], strict=True))
        return {
            text: list(chain(pieces[first], *(pieces[piece][1:] for piece in others)))
            for text, (first, *others) in cut.items()
        }

    def _cut(self, text: str) -> list[str]:
        """Cut behind special tokens; every piece but the first begins with the token before it."""
        if self._borders is None:
            return [text]
        pieces = []
        start = 0
        for border in self._borders.finditer(text):
            if border.end() < len(text):
                pieces.append(text[start : border.end()])
                start = border.start()
        return [*pieces, text[start:]]


def _borders(tokenizer: Any, rendered: str) -> re.Pattern[str] | None:
    """Return what finds the template's tokens behind which text can be cut, changing no token.

    A fast tokenizer takes unnormalised added tokens out first, leftmost and longest, and works on
    each stretch between them alone. No border are those that take in spaces or look around, and
    those that another token may hold or overlap.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    tokens = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    borders = [
        re.escape(token.content)
        for token in tokens
        if token.content in rendered
        and token.content == token.content.strip()
        and not (token.lstrip or token.rstrip or token.single_word)
        and not any(_reaches_into(other.content, token.content) for other in tokens)
    ]
    return re.compile("|".join(borders)) if borders else None


def _reaches_into(other: str, token: str) -> bool:
    """Whether a match of ``other`` may take the place of one of ``token``, or begin it."""
    overlaps = (other.endswith(token[:length]) for length in range(1, len(token)))
    return (other != token and token in other) or any(overlaps)
