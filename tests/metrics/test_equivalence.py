from math import inf, sqrt

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from sft_lab.metrics.equivalence import equivalence_p, no_loss_p, smallest_difference
from sft_lab.metrics.paired import Difference, paired_means, paired_over_seeds, paired_shares


def difference(value: float, half: float, df: float = inf) -> Difference:
    return Difference(value, value - half, value + half, 1, 100, 0, 0, "by hand", df)


def test_two_one_sided_tests_by_hand() -> None:
    # Standard error 0.02; the margin is 0.05 - 0.01 = 2 errors away above, 3 below.
    found = difference(0.01, stats.norm.ppf(0.975) * 0.02)
    assert equivalence_p(found, 0.05) == pytest.approx(stats.norm.sf(2))
    assert no_loss_p(found, 0.05) == pytest.approx(stats.norm.sf(3))
    few = difference(0.01, stats.t.ppf(0.975, 4) * 0.02, df=4)
    assert equivalence_p(few, 0.05) == pytest.approx(stats.t.sf(2, 4))


def test_equivalence_is_that_of_statsmodels() -> None:
    changes = np.random.default_rng(0).normal(0.02, 0.3, 200)
    low, high = DescrStatsW(changes).tconfint_mean()
    found = Difference(float(changes.mean()), low, high, 1, 200, 0, 0, "t", 199)
    for margin in (0.01, 0.05, 0.1):
        theirs = DescrStatsW(changes).ttost_mean(-margin, margin)[0]
        assert equivalence_p(found, margin) == pytest.approx(theirs)


def test_no_significance_is_no_equivalence() -> None:
    ten = paired_shares([True, False] * 5, [False, True] * 5)
    assert ten.p == 1
    assert equivalence_p(ten, 0.05) > 0.4
    same = paired_shares([True] * 10, [True] * 10)  # ten unchanged items say little
    assert equivalence_p(same, 0.05) > 0.2
    assert equivalence_p(paired_shares([True] * 2000, [True] * 2000), 0.05) < 0.001
    assert equivalence_p(paired_means([1, 1, 1], [1, 1, 1]), 0.05) == 1  # no interval


def test_a_difference_at_the_margin_is_never_equivalent() -> None:
    assert equivalence_p(difference(0.05, 0.0), 0.05) == 1
    assert equivalence_p(difference(0.04, 0.0), 0.05) == 0
    assert equivalence_p(difference(0.05, 0.01), 0.05) == 0.5


def test_seeds_and_clusters_count_in_the_margin_tests() -> None:
    before, after = np.random.default_rng(2).integers(0, 2, (2, 3, 80)).tolist()
    clusters = [n // 8 for n in range(80)]
    found = paired_over_seeds(before, after, clusters=clusters)
    error = (found.high - found.value) / stats.t.ppf(0.975, found.df)
    distance = 0.05 - abs(found.value)
    assert equivalence_p(found, 0.05) == pytest.approx(stats.t.sf(distance / error, found.df))
    assert found.df < 79


def test_the_smallest_difference_by_hand() -> None:
    found = difference(0.0, stats.norm.ppf(0.975) * 0.02)
    # (1.960 + 0.842) * 0.02
    assert smallest_difference(found) == pytest.approx(0.05603, abs=1e-5)
    assert smallest_difference(found, level=0.05 / 10) == pytest.approx(
        (stats.norm.ppf(1 - 0.0025) + stats.norm.ppf(0.8)) * 0.02
    )
    few = difference(0.0, stats.t.ppf(0.975, 4) * 0.02, df=4)
    assert smallest_difference(few) == pytest.approx((2.7764 + 0.9410) * 0.02, abs=1e-4)
    assert smallest_difference(Difference(0, -inf, inf, 1, 1, 0, 0, "none")) == inf


def test_the_smallest_difference_is_shown_in_80_percent_of_cases() -> None:
    rng, error = np.random.default_rng(1), 1 / sqrt(50)
    expected = smallest_difference(difference(0.0, stats.t.ppf(0.975, 49) * error, df=49))
    drawn = rng.normal(expected, 1, (4000, 50))
    shown = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.025)
