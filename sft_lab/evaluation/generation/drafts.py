"""Drafts of answers: a model often repeats its previous answer to a prompt."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_FIRST_ROWS = 8  # whose drafts are tried whole; spread over all lengths
_MARGIN = 2  # tokens of a draft beyond twice the mean of those that were right
_RETRY = 4  # one pass in this many tries drafts that have been wrong from the start


class Drafts:
    """The drafts of one call of ``generate``, each cut to the length that is likely to be right.

    A pass over a draft costs its whole length and gains only the tokens before the first wrong one.
    So a few drafts are tried first, and the others are cut to twice the mean number of right
    tokens, plus a margin. Where drafts are wrong from the start, most passes try none.

    Args:
        drafts: Token ids that each answer may begin with.
        max_new_tokens: Longest answer, in tokens; its last token is never drafted.

    >>> drafts = Drafts([[5] * 30, [6] * 30], max_new_tokens=21)
    >>> drafts.order([1, 0])
    [1, 0]
    >>> [first, second] = drafts.of([0, 1])
    >>> len(first), len(second)
    (20, 20)
    >>> drafts.record([first], [3])
    >>> [second] = drafts.of([1])
    >>> len(second)
    8
    """

    def __init__(self, drafts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self._drafts = [draft[: max_new_tokens - 1] for draft in drafts]
        self._num_tried = self._num_right = self._num_passes = 0

    def order(self, rows: Sequence[int]) -> list[int]:
        """Return rows in the order to read them: those to try first, then the others as given."""
        drafted = [row for row in rows if self._drafts[row]]
        size = min(_FIRST_ROWS, len(drafted))
        first = [drafted[place * len(drafted) // size] for place in range(size)]
        return [*first, *(row for row in rows if row not in first)]

    def of(self, rows: Sequence[int]) -> list[Sequence[int]]:
        """Return the parts of drafts to try in a pass over rows, or over the first few of them."""
        drafts = [self._drafts[row] for row in rows]
        if not self._num_tried:
            return drafts[:_FIRST_ROWS] if any(drafts[:_FIRST_ROWS]) else drafts
        self._num_passes += 1
        length = 2 * self._num_right // self._num_tried
        if not length and self._num_passes % _RETRY:
            return [()] * len(rows)
        return [draft[: length + _MARGIN] for draft in drafts]

    def record(self, tried: Sequence[Sequence[int]], num_right: Sequence[int]) -> None:
        """Record how many tokens were right of each draft that a pass has tried."""
        self._num_tried += sum(map(bool, tried))
        self._num_right += sum(num_right)


class EarlierAnswers:
    """The last answer to every prompt, as token ids; part of a checkpoint.

    Drafts determine what is computed in one pass, and so how sums are rounded: a resumed run needs
    the same drafts to repeat an unbroken run to the bit. So an evaluation takes its drafts from
    evaluations at other steps only, and gets the same ones if it is repeated at the same step.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._drafts: dict[str, array[int]] = {}
        self._answers: dict[str, array[int]] = {}  # of the last evaluation, unless drafts

    def begin(self, step: int) -> None:
        """Begin an evaluation; answers from another step become drafts."""
        if step != self._step:
            self._drafts |= self._answers
            self._answers = {}
            self._step = step

    def of(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the draft for a prompt, or an empty one."""
        return self._drafts.get(_key(prompt), ())

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer for the next evaluation."""
        key, kept = _key(prompt), array("i", answer)
        self._answers.pop(key, None)
        if kept != self._drafts.get(key):
            self._answers[key] = kept

    def state_dict(self) -> dict[str, Any]:
        """Return drafts and answers, each concatenated as int32, with lengths and keys."""
        return {
            "step": self._step,
            "drafts": _joined(self._drafts),
            "answers": _joined(self._answers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replace the current state."""
        self._step = state_dict["step"]
        self._drafts = _split(state_dict["drafts"])
        self._answers = _split(state_dict["answers"])


def _joined(answers: Mapping[str, "array[int]"]) -> dict[str, Any]:
    token_ids = array("i")
    for answer in answers.values():
        token_ids.extend(answer)
    return {
        "keys": list(answers),
        "lengths": [len(answer) for answer in answers.values()],
        "token_ids": torch.tensor(token_ids, dtype=torch.int32),
    }


def _split(joined: Mapping[str, Any]) -> dict[str, "array[int]"]:
    answers = joined["token_ids"].split(joined["lengths"])
    return {k: array("i", a.tolist()) for k, a in zip(joined["keys"], answers, strict=True)}


def _key(prompt: Sequence[int]) -> str:
    return hashlib.sha256(array("q", prompt).tobytes()).hexdigest()[:32]
