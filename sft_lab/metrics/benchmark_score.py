"""The score of a benchmark: the share of its items that were answered rightly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from sft_lab.metrics.intervals import wilson


class BenchmarkScore(Metric):
    """Share of right verdicts, in [0, 1], float32; nan before the first verdict.

    >>> score = BenchmarkScore()
    >>> score([True, False, True, True])
    tensor(0.7500)
    >>> score.num_examples
    4
    """

    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, correct: Sequence[bool]) -> None:
        self.correct += sum(map(bool, correct))
        self.total += len(correct)

    @override
    def compute(self) -> Tensor:
        return self.correct / self.total

    @property
    def num_examples(self) -> int:
        """How many verdicts this process has counted."""
        return int(self.total)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the Wilson interval of the verdicts that this process has counted.

        Raises:
            ValueError: If there are none.
        """
        return wilson(int(self.correct), int(self.total), confidence)
