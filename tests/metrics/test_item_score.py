"""Scores as torchmetrics metrics: order, duplicates, gathering, intervals."""

import random
from collections.abc import Sequence
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint

from sft_lab.metrics.item_score import ItemScore, MarkKey, PassAtK
from sft_lab.metrics.score import Score, accuracy

# Item, answer, part: three items, the second answered twice, each answer of two parts.
MARKED: list[tuple[MarkKey, float]] = [
    ((item, answer, part), float(mark))
    for (item, answer), marks in {
        (0, 0): (1, 0),
        (1, 0): (1, 1),
        (1, 1): (0, 1),
        (2, 0): (0, 0),
    }.items()
    for part, mark in enumerate(marks)
]
SAMPLES: list[tuple[MarkKey, float]] = [
    ((item, answer, 0), mark)
    for item, marks in enumerate([(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0)])
    for answer, mark in enumerate(marks)
]


def fed(metric: ItemScore, marked: Sequence[tuple[MarkKey, float]], batch: int = 3) -> ItemScore:
    for start in range(0, len(marked), batch):
        some = marked[start : start + batch]
        metric.update([key for key, _ in some], [mark for _, mark in some])
    return metric


METRICS = pytest.mark.parametrize(
    ("make", "marked"),
    [
        (ItemScore, MARKED),
        (ItemScore, [((item, 0, 0), float(item % 3 == 0)) for item in range(20)]),
        (lambda **kwargs: ItemScore(is_share=False, **kwargs), MARKED),
        (lambda **kwargs: PassAtK(2, **kwargs), SAMPLES),
    ],
)


@METRICS
def test_order_and_repeated_marks_do_not_matter(make: Any, marked: Any) -> None:
    expected = fed(make(), marked).score()
    assert expected is not None
    shuffled = random.Random(0).sample(marked, len(marked))
    assert fed(make(), shuffled).score() == expected
    assert fed(make(), [*marked, *shuffled[:4]]).score() == expected


@METRICS
def test_merged_halves_equal_the_whole(make: Any, marked: Any) -> None:
    first, second = fed(make(), marked[::2]), fed(make(), marked[1::2])
    first.merge_state(second)
    assert first.score() == fed(make(), marked).score()


@METRICS
def test_ranks_gather_to_the_score_of_the_whole(make: Any, marked: Any) -> None:
    # The sampler of four ranks repeats items until all have the same number; the last has none.
    ranks = [fed(make(), part) for part in (marked[::2], marked[1::2], marked[:3], [])]
    ranks[-1].update([], [])

    def gather(state: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        name = "marks" if state.dtype == torch.float64 else "keys"
        return [torch.cat(getattr(rank, name)) for rank in ranks]

    together = make(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    assert fed(together, marked[::2]).score() == fed(make(), marked).score()


def test_the_first_of_several_marks_with_one_key_counts() -> None:
    score = fed(ItemScore(), [((0, 0, 0), 1.0), ((0, 0, 0), 0.0), ((1, 0, 0), 0.0)]).score()
    assert score is not None
    assert (score.value, score.n) == (0.5, 2)


def test_a_share_of_items_answered_once_has_wilsons_interval() -> None:
    score = fed(ItemScore(), [((item, 0, 0), float(item < 7)) for item in range(20)]).score()
    low, high = proportion_confint(7, 20, method="wilson")
    assert score == Score(0.35, pytest.approx(low), pytest.approx(high), 20)


def test_parts_of_an_answer_count_one_by_one_and_vary_together() -> None:
    marks = [((item, 0, part), float(item != 1)) for item in range(4) for part in range(item + 1)]
    score = fed(ItemScore(), marks).score()
    assert score is not None
    assert (score.value, score.n) == (0.8, 10)
    assert score == accuracy([mark == 1 for _, mark in marks], [item for (item, *_), _ in marks])


def test_several_answers_to_an_item_are_drawn_together() -> None:
    score = fed(ItemScore(), MARKED).score()
    # All 27 equally likely draws of three of the items, with their sums and sizes.
    items = {0: (1, 2), 1: (3, 4), 2: (0, 2)}
    draws = np.random.default_rng(0).integers(0, 3, (10_000, 3))
    means = [sum(items[i][0] for i in d) / sum(items[i][1] for i in d) for d in draws.tolist()]
    low, high = np.quantile(means, [0.025, 0.975])
    assert score == Score(0.5, float(low), float(high), 8)


def test_ratings_of_0_and_1_are_not_shares() -> None:
    marked = [((item, 0, 0), 1.0) for item in range(3)]
    score = fed(ItemScore(is_share=False), marked).score()
    assert score == Score(1.0, 1.0, 1.0, 3)  # Wilson's interval would begin below 1
    as_share = fed(ItemScore(), marked).score()
    assert as_share is not None
    assert as_share.low < 1.0


def test_pass_at_k_is_the_mean_over_items_of_all_draws_of_k() -> None:
    by_item = [(1, 0, 0), (1, 1, 0), (0, 0, 0, 0)]
    for k in (1, 2, 3):
        expected = mean(mean(max(draw) for draw in combinations(m, k)) for m in by_item)
        score = fed(PassAtK(k), SAMPLES).score()
        assert score is not None
        assert (score.value, score.n) == (pytest.approx(expected), 3)
    assert fed(PassAtK(4), SAMPLES).score() is None  # two items have three answers


def test_without_marks_there_is_no_score() -> None:
    for metric in (ItemScore(), PassAtK(1)):
        metric.update([], [])
        assert metric.score() is None


def test_marks_without_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 keys, 2 marks"):
        ItemScore().update([(0, 0, 0)], [1.0, 0.0])
