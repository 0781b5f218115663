"""Scores of items as torchmetrics metrics, which keep every mark so that ranks can gather them."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from sft_lab.metrics.score import Score, accuracy, mean_score, pass_at_k

MarkKey = tuple[int, int, int]
"""Item, answer to that item, and part of that answer that a mark belongs to."""


class ItemScore(Metric):
    """Mean of the marks of items, with its 95 % interval.

    A mark is identified by its key: one that arrives twice, as with a distributed sampler that
    pads its last batch, counts once, and the order of updates does not matter. The interval is
    Wilson's for shares with one answer per item, and the bootstrap over items otherwise; both take
    the items of one cluster together.

    Args:
        is_share: Whether marks are true or false; by default, whether all of them are 0 or 1.
        clusters: The cluster of each item, by the item's number; by default each item is its own.
        kwargs: Arguments of ``torchmetrics.Metric``.

    >>> metric = ItemScore()
    >>> metric.update([(0, 0, 0), (1, 0, 0)], [True, False])
    >>> metric.update([(1, 0, 0), (2, 0, 0)], [False, False])  # item 1 again
    >>> score = metric.score()
    >>> (round(score.value, 3), score.n)
    (0.333, 3)
    """

    full_state_update = False
    keys: list[Tensor]
    marks: list[Tensor]

    def __init__(
        self,
        is_share: bool | None = None,
        clusters: Sequence[Hashable] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.is_share = is_share
        self.clusters = clusters
        self.add_state("keys", [], dist_reduce_fx="cat")
        self.add_state("marks", [], dist_reduce_fx="cat")

    @override
    def update(self, keys: Sequence[MarkKey], marks: Sequence[float]) -> None:
        """Add marks.

        Args:
            keys: The key of each mark.
            marks: The marks.

        Raises:
            ValueError: If there is not one key per mark.
        """
        if len(keys) != len(marks):
            raise ValueError(f"every mark needs a key, got {len(keys)} keys, {len(marks)} marks.")
        self.keys.append(torch.tensor(keys, dtype=torch.int64, device=self.device).reshape(-1, 3))
        self.marks.append(torch.tensor(marks, dtype=torch.float64, device=self.device))

    @override
    def compute(self) -> dict[str, Any]:
        """Return the fields of a ``Score``; none if there are no marks, or too few."""
        # Fields, because torchmetrics copies results and cannot copy a frozen dataclass.
        return {} if (found := self._score(self._by_item())) is None else dict(vars(found))

    def score(self) -> Score | None:
        """Return the score over the items of all ranks, or None if there are none, or too few."""
        found = self.compute()
        return Score(**found) if found else None

    def _by_item(self) -> dict[int, dict[int, list[float]]]:
        """Return each answer's marks by item and answer, both ascending, without repeated keys."""
        keys = dim_zero_cat(self.keys).tolist()
        marks = dim_zero_cat(self.marks).tolist()
        found: defaultdict[int, defaultdict[int, list[float]]]
        found = defaultdict(lambda: defaultdict(list))
        # Reversed, so that the first of several marks with one key is kept.
        for (item, answer, _), mark in sorted(
            dict(zip(map(tuple, reversed(keys)), reversed(marks), strict=True)).items()
        ):
            found[item][answer].append(mark)
        return {item: dict(answers) for item, answers in found.items()}

    def _score(self, by_item: dict[int, dict[int, list[float]]]) -> Score | None:
        marks = [
            (item, mark)
            for item, answers in by_item.items()
            for parts in answers.values()
            for mark in parts
        ]
        if not marks:
            return None
        answered_once = all(len(answers) == 1 for answers in by_item.values())
        values = [mark for _, mark in marks]
        is_share = set(values) <= {0, 1} if self.is_share is None else self.is_share
        if is_share and answered_once:
            return accuracy([m == 1 for m in values], self._clusters([item for item, _ in marks]))
        return mean_score(values, groups=self._clusters([item for item, _ in marks]))

    def _clusters(self, items: Sequence[int]) -> Sequence[Hashable]:
        """Return the cluster of each of some items."""
        return items if self.clusters is None else [self.clusters[item] for item in items]


class PassAtK(ItemScore):
    """Unbiased estimate of the chance that of ``k`` answers to an item one is right.

    Args:
        k: Answers drawn per item; there is no score if an item has fewer.
        kwargs: Arguments of ``torchmetrics.Metric``.
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k

    @override
    def _score(self, by_item: dict[int, dict[int, list[float]]]) -> Score | None:
        right = [[mark for [mark] in answers.values()] for answers in by_item.values()]
        if not right or min(map(len, right)) < self.k:
            return None
        if max(map(len, right)) == 1:
            return accuracy([mark == 1 for [mark] in right], self._clusters(list(by_item)))
        return mean_score(
            [pass_at_k(len(marks), int(sum(marks)), self.k) for marks in right],
            groups=self._clusters(list(by_item)),
        )
