from itertools import combinations
from math import comb

import pytest

from sft_lab.metrics.intervals import bootstrap, wilson
from sft_lab.metrics.score import Score, accuracy, mean_score, pass_at_k


def test_accuracy_is_a_share_with_wilson_s_interval() -> None:
    assert accuracy([True, False, True, True]) == Score(0.75, *wilson(3, 4), n=4)


def test_a_mean_has_the_interval_of_its_groups() -> None:
    values, groups = [1.0, 1.0, 4.0], ["a", "a", "b"]
    assert mean_score(values, groups) == Score(2.0, *bootstrap(values, groups), n=3)


@pytest.mark.parametrize(
    ("samples", "passed", "k", "expected"),
    [
        (1, 1, 1, 1.0),
        (1, 0, 1, 0.0),
        (10, 3, 1, 0.3),  # pass@1 is the share
        (4, 1, 2, 1 - 3 / 6),
        (5, 2, 3, 1 - 1 / 10),
        (5, 3, 3, 1.0),  # no three of five fail
        (200, 1, 100, 0.5),
    ],
)
def test_pass_at_k_equals_the_closed_form(
    samples: int, passed: int, k: int, expected: float
) -> None:
    assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass() -> None:
    for passed in range(7):
        draws = list(combinations([True] * passed + [False] * (6 - passed), 3))
        assert len(draws) == comb(6, 3)
        assert pass_at_k(6, passed, 3) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("samples", "passed", "k"), [(2, 3, 1), (2, 1, 3), (2, 1, 0), (2, -1, 1)])
def test_impossible_counts_are_refused(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got {passed} of {samples} and k = {k}"):
        pass_at_k(samples, passed, k)


def test_nothing_has_no_score() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        accuracy([])
    with pytest.raises(ValueError, match="at least one value"):
        mean_score([])
