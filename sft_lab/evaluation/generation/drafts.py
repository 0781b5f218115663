"""Drafts of answers: what was answered to a prompt before is often answered again."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_MARGIN = 8  # tokens of a draft that are tried even where drafts are wrong from the start


class Drafts:
    """The drafts of one call of ``generate``, each cut to what is likely to be right.

    A pass over a draft costs its whole length, and gains what is right from its start. So once some
    have been tried, the others are cut to twice what was right on average, and a margin.

    Args:
        drafts: Token ids that each answer may begin with.
        max_new_tokens: Longest answer, in tokens; the last one of it is never drafted.

    >>> drafts = Drafts([[5] * 30, [6] * 30], max_new_tokens=21)
    >>> len(drafts.of(0))
    20
    >>> drafts.tell(0, num_right=3)
    >>> len(drafts.of(1))
    14
    """

    def __init__(self, drafts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self._drafts = [draft[: max_new_tokens - 1] for draft in drafts]
        self._num_tried = self._num_right = 0

    def of(self, row: int) -> Sequence[int]:
        """Return what is tried of a row's draft."""
        draft = self._drafts[row]
        if not self._num_tried:
            return draft
        return draft[: 2 * self._num_right // self._num_tried + _MARGIN]

    def tell(self, row: int, num_right: int) -> None:
        """Say how many tokens of a row's draft were right."""
        if self._drafts[row]:
            self._num_tried += 1
            self._num_right += num_right


class EarlierAnswers:
    """The last answer to every prompt, as token ids; part of a checkpoint.

    Which drafts there are decides what is computed in one pass, and with it how sums are rounded: a
    run that goes on must have the same ones to repeat an unbroken run to the bit. So an evaluation
    has what others have answered for its drafts, and when it is made again, at the same step, it
    has them again.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._drafts: dict[str, array[int]] = {}
        self._answers: dict[str, array[int]] = {}  # of the last evaluation, if other than drafts

    def begin(self, step: int) -> None:
        """Begin an evaluation; all that was answered at another step is a draft from now on."""
        if step != self._step:
            self._drafts |= self._answers
            self._answers = {}
            self._step = step

    def of(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the draft for a prompt; an empty one where there is none."""
        return self._drafts.get(_key(prompt), ())

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer for the next evaluation."""
        key, kept = _key(prompt), array("i", answer)
        self._answers.pop(key, None)
        if kept != self._drafts.get(key):
            self._answers[key] = kept

    def state_dict(self) -> dict[str, Any]:
        """Return drafts and answers: each behind each other, int32, with lengths and keys."""
        return {
            "step": self._step,
            "drafts": _joined(self._drafts),
            "answers": _joined(self._answers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state in place of what there is."""
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
