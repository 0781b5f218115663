"""Drafts of answers: what was answered to a prompt before is often answered again."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

import torch

_MARGIN = 8  # tokens of a draft that are tried even where drafts are wrong from the start


class Drafts:
    """The drafts of one call of ``generate``, each cut to what is likely to be right.

    A pass over a draft costs its whole length, and gains what is right from its start. So once some
    have been tried, the others are cut to twice what was right on average.

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
    run that goes on must have the same ones to repeat an unbroken run to the bit.
    """

    def __init__(self) -> None:
        self._answers: dict[str, array[int]] = {}

    def of(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the last answer to a prompt; an empty one where there is none."""
        return self._answers.get(_key(prompt), ())

    def keep(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keep an answer in place of the prompt's last one."""
        self._answers[_key(prompt)] = array("i", answer)

    def state_dict(self) -> dict[str, Any]:
        """Return all answers behind each other, int32, their lengths, and their prompts' keys."""
        joined = array("i")
        for answer in self._answers.values():
            joined.extend(answer)
        return {
            "keys": list(self._answers),
            "lengths": [len(answer) for answer in self._answers.values()],
            "token_ids": torch.tensor(joined, dtype=torch.int32),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the answers of a state in place of all there are."""
        answers = state_dict["token_ids"].split(state_dict["lengths"])
        self._answers = {
            key: array("i", answer.tolist())
            for key, answer in zip(state_dict["keys"], answers, strict=True)
        }


def _key(prompt: Sequence[int]) -> str:
    return hashlib.sha256(array("q", prompt).tobytes()).hexdigest()[:32]
