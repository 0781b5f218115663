"""Intervals and tests of items in clusters, against other implementations and by simulation."""

import numpy as np
import pytest
import statsmodels.api as sm

from sft_lab.metrics.clusters import variance_of_mean
from sft_lab.metrics.item_score import ItemScore
from sft_lab.metrics.paired import paired_over_seeds, paired_shares
from sft_lab.metrics.score import accuracy
from sft_lab.metrics.seeds import crossed_variance, mean_over_seeds_and_items

SIZES = [1, 2, 5, 8, 3, 6, 9, 4]
CLUSTERS = [str(n) for n, size in enumerate(SIZES) for _ in range(size)]
RNG = np.random.default_rng(7)
VALUES = RNG.normal(size=len(CLUSTERS)) + np.repeat(RNG.normal(size=len(SIZES)), SIZES)


def test_the_variance_is_that_of_a_regression_with_clustered_errors() -> None:
    groups = np.array([int(cluster) for cluster in CLUSTERS])
    fit = sm.OLS(VALUES, np.ones(len(VALUES))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    variance, df = variance_of_mean(VALUES, CLUSTERS)
    assert variance == pytest.approx(float(fit.bse[0]) ** 2)
    assert df == len(SIZES) - 1
    order = RNG.permutation(len(VALUES))  # items of a cluster need not follow each other
    shuffled = [CLUSTERS[place] for place in order]
    assert variance_of_mean(VALUES[order], shuffled) == (pytest.approx(variance), df)


def test_items_alone_have_the_variance_of_a_mean() -> None:
    expected = VALUES.var(ddof=1) / len(VALUES)
    for clusters in (None, range(len(VALUES))):
        assert variance_of_mean(VALUES, clusters) == (pytest.approx(expected), len(VALUES) - 1)
    marks = (VALUES > 0).tolist()
    assert accuracy(marks, range(len(marks))) == accuracy(marks)
    assert paired_over_seeds([marks], [marks[::-1]], True, range(len(marks))) == paired_shares(
        marks, marks[::-1]
    )
    table = RNG.random((3, len(VALUES))) < 0.5
    assert mean_over_seeds_and_items(table, range(len(VALUES))) == mean_over_seeds_and_items(table)


def test_clusters_of_equal_items_count_as_one_item_each() -> None:
    # 40 items that are 8 items written five times: the variances are those of the 8.
    eight = RNG.normal(size=(3, 8))
    forty, clusters = np.repeat(eight, 5, axis=1), np.repeat(np.arange(8), 5).tolist()
    assert variance_of_mean(forty[0], clusters) == pytest.approx(variance_of_mean(eight[0]))
    assert crossed_variance(forty.mean(axis=0), [forty], clusters) == pytest.approx(
        crossed_variance(eight.mean(axis=0), [eight])
    )
    change = paired_over_seeds(forty, forty + eight.repeat(5, axis=1), False, clusters)
    assert (change.low, change.high, change.p) == pytest.approx(
        [getattr(paired_over_seeds(eight, 2 * eight), name) for name in ("low", "high", "p")]
    )


def test_marks_that_do_not_differ_count_as_many_as_their_clusters() -> None:
    # Wilson's lower bound of G of G right is G / (G + t^2), and t = 2.365 for G = 8.
    score = accuracy([True] * len(CLUSTERS), CLUSTERS)
    assert (score.value, score.high, score.n) == (1.0, 1.0, len(CLUSTERS))
    assert score.low == pytest.approx(8 / (8 + 2.3646**2), abs=1e-4)
    one = accuracy([True, False, True], ["a"] * 3)
    assert (one.low, one.high) == (0.0, 1.0)


def test_a_change_of_one_cluster_is_not_shown() -> None:
    # Six lost items are significant alone, and nothing as one structure among eight.
    before = [True] * len(CLUSTERS)
    after = [cluster != "5" for cluster in CLUSTERS]
    assert paired_shares(before, after).p < 0.05
    change = paired_over_seeds([before], [after], True, CLUSTERS)
    assert change == paired_shares(before, after, CLUSTERS)
    assert change.p == 1.0  # one cluster has changed: either sign is as far from 0
    assert (change.value, change.gained, change.lost) == (-6 / 38, 0, 6)
    assert change.low < -6 / 38 < 0 < change.high


def test_sign_flips_of_clusters_by_hand() -> None:
    # Net changes of four clusters: -2, -2, -1, 1. Of their 16 signs, six give a sum of 4 or more:
    # 2 + 2 with every sign of the two ones but both against it, and the reverse.
    clusters = list("aabbcde")
    before = [True, True, True, True, True, False, False]
    after = [False, False, False, False, False, True, False]
    change = paired_shares(before, after, clusters)
    assert change.p == 6 / 16
    assert change.test == "sign flips of clusters"


def test_many_clusters_have_the_p_of_mcnemar_if_they_change_like_items() -> None:
    # Every item twice: the sums of the clusters are twice those of the items.
    before, after = [True] * 40 + [False] * 20, [False] * 18 + [True] * 29 + [False] * 13
    twice = [n // 2 for n in range(120)]
    change = paired_shares(np.repeat(before, 2).tolist(), np.repeat(after, 2).tolist(), twice)
    assert change.p == pytest.approx(paired_shares(before, after).p, abs=0.01)


def test_no_change_has_an_interval_of_the_width_that_the_clusters_allow() -> None:
    change = paired_shares([False] * 38, [False] * 38, CLUSTERS)
    alone = paired_shares([False] * 38, [False] * 38)
    assert (change.value, change.p) == (0.0, 1.0)
    assert change.low < alone.low < 0 < alone.high < change.high
    lost = paired_shares([True] * 38, [False] * 38, CLUSTERS)
    assert lost.p == 2 / 2 ** len(SIZES)
    assert -1 == lost.low < lost.high < -0.4


def test_a_metric_takes_the_clusters_of_its_items() -> None:
    metric = ItemScore(clusters=CLUSTERS)
    marks = (VALUES > 0).tolist()
    for place in reversed(range(len(marks))):
        metric.update([(place, 0, 0)], [marks[place]])
    assert metric.score() == accuracy(marks, CLUSTERS)


# 25 clusters of 8 items, as in the world's math, with a third of the variance between clusters.
EIGHTS = np.repeat(np.arange(25), 8).tolist()


def drawn(rng: np.random.Generator, share: float) -> list[bool]:
    """Return marks of clusters whose shares have a mean and an intraclass correlation of 1 / 3."""
    shares = rng.beta(2 * share, 2 * (1 - share), size=25)
    return (rng.random(200) < np.repeat(shares, 8)).tolist()


@pytest.mark.parametrize(("share", "least"), [(0.05, 0.89), (0.5, 0.93), (0.7, 0.93), (0.95, 0.89)])
def test_intervals_of_clustered_shares_cover(share: float, least: float) -> None:
    rng = np.random.default_rng(3)
    covered = naive = 0
    for _ in range(400):
        marks = drawn(rng, share)
        score, alone = accuracy(marks, EIGHTS), accuracy(marks)
        covered += score.low <= share <= score.high
        naive += alone.low <= share <= alone.high
    assert least <= covered / 400 <= 0.98
    assert naive / 400 < 0.8


def test_without_a_difference_few_are_shown() -> None:
    rng = np.random.default_rng(3)
    p_values = [paired_shares(drawn(rng, 0.7), drawn(rng, 0.7), EIGHTS).p for _ in range(400)]
    assert 0.02 <= np.mean([p < 0.05 for p in p_values]) <= 0.08


def test_every_item_needs_a_cluster() -> None:
    with pytest.raises(ValueError, match="3 items need as many clusters, got 2"):
        variance_of_mean(np.zeros(3), ["a", "b"])
