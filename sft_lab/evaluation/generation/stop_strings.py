"""Strings that end an answer, detected while its tokens are generated."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_UNFINISHED = "\ufffd"  # printed by tokenizers for an incomplete character


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    r"""Return a text up to the first stop string in it, or all of it.

    The first is the one completed first; if several end together, the longest. So the cut does not
    depend on tokenization.

    >>> before_stop("a = 1\nprint(a)\ndef f", ["\ndef", "\nprint"])
    'a = 1'
    >>> before_stop("a = 1", ["\ndef"])
    'a = 1'
    """
    places = [(text.find(stop), len(stop)) for stop in stop_strings]
    found = [(start + length, start) for start, length in places if start >= 0]
    return text[: min(found)[1]] if found else text


class StopWatch:
    """Watches the tokens of one answer for a stop string.

    A token may end in the middle of a character, and its text may depend on the token before it;
    so tokens are decoded together with those before them, and only up to a whole character.

    Args:
        decode: Turns token ids into text.
        stop_strings: The strings that end the answer.
    """

    def __init__(self, decode: Decode, stop_strings: Sequence[str]) -> None:
        self.decode = decode
        self.stop_strings = stop_strings
        self._longest = max(map(len, stop_strings))
        self._token_ids: list[int] = []
        self._context = 0  # tokens from here to _read are decoded again, as context
        self._read = 0
        self._tail = ""

    def add(self, token_id: int) -> bool:
        """Add the next token and return whether a stop string is complete."""
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
        # The whole text decides: pieces of it may decode differently.
        whole = self.decode(self._token_ids)
        return any(stop in whole for stop in self.stop_strings)
