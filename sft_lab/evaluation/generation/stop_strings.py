"""Strings that end an answer, found while its tokens come one by one."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_UNFINISHED = "\ufffd"  # what tokenizers print for the first bytes of a character


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    r"""Return a text up to the first stop string in it, or all of it.

    The first is the one that is complete first, and of several that end together the longest: what
    is cut off does not depend on how a text is cut into tokens.

    >>> before_stop("a = 1\nprint(a)\ndef f", ["\ndef", "\nprint"])
    'a = 1'
    >>> before_stop("a = 1", ["\ndef"])
    'a = 1'
    """
    places = [(text.find(stop), len(stop)) for stop in stop_strings]
    found = [(start + length, start) for start, length in places if start >= 0]
    return text[: min(found)[1]] if found else text


class StopWatch:
    """Sees the tokens of one answer and says when it holds a stop string.

    A token may end in the middle of a character, and what a token reads as may depend on the one
    before it; so tokens are read behind those before them, and only up to a whole character.

    Args:
        decode: The text of token ids.
        stop_strings: What ends the answer.
    """

    def __init__(self, decode: Decode, stop_strings: Sequence[str]) -> None:
        self.decode = decode
        self.stop_strings = stop_strings
        self._longest = max(map(len, stop_strings))
        self._token_ids: list[int] = []
        self._context = 0  # tokens from here to _read are read again, for what follows them
        self._read = 0
        self._tail = ""

    def add(self, token_id: int) -> bool:
        """Take the next token and return whether a stop string is complete."""
        self._token_ids.append(token_id)
        known = self.decode(self._token_ids[self._context : self._read])
        text = self.decode(self._token_ids[self._context :])
        if text.endswith(_UNFINISHED) or len(text) <= len(known):
            return False
        self._context, self._read = self._read, len(self._token_ids)
        window = self._tail + text[len(known) :]
        self._tail = window[max(0, len(window) - self._longest + 1) :]
        if not any(stop in window for stop in self.stop_strings):
            return False
        # The text of the whole decides; pieces of it may read otherwise.
        whole = self.decode(self._token_ids)
        return any(stop in whole for stop in self.stop_strings)
