"""Tokenise texts that share beginnings, as a conversation and its prompts do, only once."""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any


class PrefixEncoder:
    """Encode texts in pieces, so that a shared beginning is tokenised once.

    Args:
        tokenizer: A transformers tokenizer.
        rendered: A conversation as its template renders it; texts may be split after the special
            tokens in it.
    """

    def __init__(self, tokenizer: Any, rendered: str) -> None:
        self._tokenizer = tokenizer
        self._borders = _borders(tokenizer, rendered)

    def encode(self, texts: Iterable[str], pieces: dict[str, list[int]]) -> dict[str, list[int]]:
        """Return the token ids of every text, in one tokenizer call over all new pieces.

        Args:
            texts: Texts; repeats cost nothing.
            pieces: Ids of pieces encoded before; the new ones are added.
        """
        split = {text: self._split(text) for text in texts}
        new = [piece for piece in dict.fromkeys(chain(*split.values())) if piece not in pieces]
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
            for text, (first, *others) in split.items()
        }

    def _split(self, text: str) -> list[str]:
        """Split after special tokens; every piece but the first repeats the token before it."""
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
    """Return a pattern of the template's tokens after which a text can be split safely.

    A fast tokenizer first takes out unnormalised added tokens, leftmost and longest, and encodes
    each stretch between them on its own. Tokens that absorb spaces, depend on their neighbours, or
    can be part of another token or overlap it are excluded.
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
        and not any(_may_cover(other.content, token.content) for other in tokens)
    ]
    return re.compile("|".join(borders)) if borders else None


def _may_cover(other: str, token: str) -> bool:
    """Return whether a match of ``other`` can contain ``token`` or its beginning."""
    overlaps = (other.endswith(token[:length]) for length in range(1, len(token)))
    return (other != token and token in other) or any(overlaps)
