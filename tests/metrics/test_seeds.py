from math import sqrt

import numpy as np
import pytest
from scipy import stats

from sft_lab.metrics.score import accuracy, mean_score
from sft_lab.metrics.seeds import mean_over_seeds_and_items, over_seeds


def test_students_interval_over_seeds() -> None:
    score = over_seeds([0.5, 0.75, 1.0])
    # t of 2 degrees of freedom is 4.30265; standard error 0.25 / sqrt(3).
    half = 4.30265 * 0.25 / sqrt(3)
    assert (score.value, score.n) == (0.75, 3)
    assert (score.low, score.high) == pytest.approx((0.75 - half, 0.75 + half), abs=1e-5)
    theirs = stats.ttest_1samp([0.5, 0.75, 1.0], 0).confidence_interval()
    assert (score.low, score.high) == pytest.approx((theirs.low, theirs.high))


def test_one_seed_has_no_interval() -> None:
    score = over_seeds([0.5])
    assert (score.value, score.low, score.high, score.n) == (0.5, None, None, 1)


def test_one_seed_of_items_is_one_run() -> None:
    assert mean_over_seeds_and_items([[1, 0, 1, 1]]) == accuracy([True, False, True, True])
    assert mean_over_seeds_and_items([[1, 7, 9.5]]) == mean_score([1, 7, 9.5])


def test_seeds_that_agree_are_no_more_items() -> None:
    score = mean_over_seeds_and_items([[1, 0, 1, 1]] * 3)
    one = accuracy([True, False, True, True])
    assert (score.value, score.n) == (0.75, 12)
    # Var of items 0.25, of 4: an effective 0.1875 / 0.0625 = 3 items, t of 3 degrees of freedom.
    assert score.low < one.low
    assert score.high > one.high


def test_none_right_in_any_seed_is_wilsons() -> None:
    score = mean_over_seeds_and_items([[0] * 10] * 3)
    assert (score.value, score.low) == (0, 0)
    assert score.high == pytest.approx(0.27753, abs=1e-5)  # z^2 / (n + z^2), as of 10 items


def test_ratings_by_hand() -> None:
    # Item means 4, 6: var 2, of 2. Seed means 4, 6: the same. No rest.
    score = mean_over_seeds_and_items([[3.0, 5.0], [5.0, 7.0]])
    half = float(stats.t.ppf(0.975, 2)) * sqrt(1 + 1)  # df: 2^2 / (1^2 / 1 + 1^2 / 1)
    assert (score.low, score.high) == pytest.approx((5 - half, 5 + half))


@pytest.mark.parametrize("seed_effect", [0.0, 0.5])
@pytest.mark.parametrize("num_seeds", [2, 4])
def test_the_interval_holds_the_truth(num_seeds: int, seed_effect: float) -> None:
    rng = np.random.default_rng(num_seeds)
    logits = rng.normal(0, 1.5, 200_000) + rng.normal(0, seed_effect, 200_000) + 0.5
    truth = float((1 / (1 + np.exp(-logits))).mean())
    held = 0
    for _ in range(400):
        logits = 0.5 + rng.normal(0, 1.5, 60) + rng.normal(0, seed_effect, (num_seeds, 1))
        score = mean_over_seeds_and_items(rng.random(logits.shape) < 1 / (1 + np.exp(-logits)))
        held += score.low <= truth <= score.high
    assert held >= 365  # 95 % of 400 is 380; fewer than 365 in 0.1 % of cases


def test_impossible_marks_are_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        over_seeds([])
    with pytest.raises(ValueError, match="nan"):
        over_seeds([float("nan")])
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        mean_over_seeds_and_items([[1], [1, 0]])
    with pytest.raises(ValueError, match="got 2 seeds"):
        mean_over_seeds_and_items([[], []])
