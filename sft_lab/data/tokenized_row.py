"""A training row as token ids, and the ranges of them that carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.data.conversation import RowError

IGNORED = -100
TooLong = Literal["drop", "cut"]


class RowTooLongError(RowError):
    """A valid row that is longer than the limit."""


@dataclass(frozen=True)
class TokenizedRow:
    """One conversation as token ids, and which of them carry loss.

    Attributes:
        input_ids: The row's token ids.
        spans: Ranges of target tokens, in order: ``start <= index < end``.
        cut: Whether turns at the end were removed because the row was too long.
    """

    input_ids: Sequence[int]
    spans: tuple[tuple[int, int], ...]
    cut: bool = False

    @property
    def labels(self) -> list[int]:
        """Return the token ids, ``IGNORED`` where there is no loss; not shifted."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.spans:
            labels[start:end] = map(int, self.input_ids[start:end])
        return labels

    @property
    def num_target_tokens(self) -> int:
        """Count the tokens that carry loss; the first has no predecessor, so it never does."""
        return sum(end - max(start, 1) for start, end in self.spans)
