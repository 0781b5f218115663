"""A tokenised source: its usable rows, and which of them are held out."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sft_lab.data.intake_report import IntakeReport
from sft_lab.data.token_store import TokenStore
from sft_lab.data.tokenized_row import TokenizedRow


@dataclass(frozen=True)
class TokenizedSource:
    """The usable rows of a source as tokens.

    Attributes:
        rows: Usable rows in file order, each read from disk on access.
        report: Counts of used, repaired and dropped rows.
        ranked: Row indices in hash rank order, held-out rows first.
        val_rows: Number of held-out rows.
    """

    rows: TokenStore
    report: IntakeReport
    ranked: list[int]
    val_rows: int

    @property
    def sample_ids(self) -> list[str]:
        """Return the SHA-256 of each row's content as hex."""
        return self.rows.sample_ids

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Return the tokens of each row, int64 ``[N]``."""
        return self.rows.num_tokens

    @property
    def num_target_tokens(self) -> NDArray[np.int32]:
        """Return the tokens of each row that carry loss, int32 ``[N]``."""
        return self.rows.num_target_tokens

    @property
    def trainable(self) -> list[int]:
        """Return the rows that may be trained on, in hash rank order."""
        return self.ranked[self.val_rows :]

    @property
    def held_out(self) -> list[TokenizedRow]:
        """Return the rows of ``val_loss/<source>``."""
        return [self.rows[index] for index in self.ranked[: self.val_rows]]

    @cached_property
    def digest(self) -> str:
        """Return a SHA-256 of all sample ids, whatever their order in the file."""
        return hashlib.sha256("".join(sorted(self.sample_ids)).encode()).hexdigest()
