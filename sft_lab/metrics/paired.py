"""Paired tests of the difference between two runs on the same items."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sft_lab.metrics.clusters import cluster_sums
from sft_lab.metrics.score import Score, accuracy
from sft_lab.metrics.seeds import are_shares, crossed_variance, marks_array

_NUM_RESAMPLES = 10_000
_MOST_EXACT = 14  # of which all 16,384 choices of signs are tried
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Difference:
    """The difference between two runs on the same items.

    Attributes:
        value: Mean of after minus mean of before, in the score's unit.
        low: Lower end of the 95 % interval; -inf if there are too few items for one.
        high: Upper end; inf if there are too few items.
        p: Two-sided.
        n: Items compared.
        gained: Items right only after; 0 if marks are ratings or means.
        lost: Items right only before.
        test: Name of the test.
        df: Degrees of freedom of the interval's quantile; inf for a normal one.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    gained: int
    lost: int
    test: str
    df: float = inf


def paired_shares(
    before: Sequence[bool],
    after: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Test the difference of two shares of right items, with Newcombe's interval.

    Under the null hypothesis, a changed item is as likely gained as lost, which is tested exactly.
    Of items in clusters, the net change of a whole cluster is as likely a gain as a loss, and the
    interval joins the clustered intervals of both shares. The interval is an approximation, so it
    may exclude 0 although p is above 5 %.

    Source: McNemar (1947), "Note on the Sampling Error of the Difference between Correlated
    Proportions or Percentages", Psychometrika 12; Newcombe (1998), "Improved Confidence Intervals
    for the Difference between Binomial Proportions Based on Paired Data", Statistics in Medicine
    17, method 10.

    Args:
        before: Whether each item was right.
        after: Whether it is now, in the same order.
        clusters: The cluster of each item; by default each item is its own.

    Raises:
        ValueError: If there are no items, or the numbers of items differ.

    >>> change = paired_shares([True] * 6, [False] * 6)
    >>> change.value, change.p  # 2 / 2^6
    (-1.0, 0.03125)
    """
    n = _same_length(before, after)
    pairs = list(zip(map(bool, before), map(bool, after), strict=True))
    sides = [[bool(mark) for mark in side] for side in (before, after)]
    both, lost, gained, neither = (
        pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    low, high = _newcombe(both, lost, gained, neither, *(accuracy(s, clusters) for s in sides))
    value = (gained - lost) / n
    if clusters is not None and (num_clusters := len(set(clusters))) < n:
        changes = np.subtract(sides[1], sides[0], dtype=np.float64)
        p, name = _sign_flip_p(cluster_sums(changes, clusters)), "sign flips of clusters"
        df: float = num_clusters - 1
    else:
        # Without a difference, a change is as likely to be a gain as a loss.
        one_side = stats.binom.cdf(min(gained, lost), gained + lost, 0.5)
        p, name, df = min(1.0, 2 * float(one_side)), "exact McNemar", inf
    return Difference(value, low, high, p, n, gained, lost, name, df)


def _sign_flip_p(changes: NDArray[Any]) -> float:
    """Return the two-sided p of a sum whose terms are as likely to have either sign.

    Of terms of -1, 0 and 1 it is the exact McNemar test. Exact for up to 14 terms that are not 0,
    else from random signs.
    """
    terms = changes[changes != 0]
    if len(terms) <= _MOST_EXACT:
        bits = np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms)) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (_NUM_RESAMPLES, len(terms)))
    reached = np.abs((2 * bits - 1) @ terms) >= abs(terms.sum()) - 1e-9
    if len(terms) <= _MOST_EXACT:
        return float(reached.mean())
    return float((reached.sum() + 1) / (_NUM_RESAMPLES + 1))  # no p of 0 from random signs


def _newcombe(
    both: int, lost: int, gained: int, neither: int, was: Score, now: Score
) -> tuple[float, float]:
    """Return Newcombe's square-and-add interval of the share after minus the share before."""
    n = both + lost + gained + neither
    right_after, right_before = both + gained, both + lost
    margins = right_after * right_before * (n - right_after) * (n - right_before)
    product = float(both * neither - lost * gained)
    if product > 0:
        product = max(product - n / 2, 0)  # his correction for continuity
    phi = product / sqrt(margins) if margins else 0.0

    def distance(of_after: float, of_before: float) -> float:
        # Never negative, since phi is in [-1, 1]; rounding could make it so.
        return sqrt(max(of_after**2 - 2 * phi * of_after * of_before + of_before**2, 0.0))

    value = (gained - lost) / n
    return (
        max(value - distance(now.value - now.low, was.high - was.value), -1.0),
        min(value + distance(now.high - now.value, was.value - was.low), 1.0),
    )


def paired_means(
    before: Sequence[float], after: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Difference:
    """Test the difference of two means by the paired bootstrap over items.

    The interval is the expanded percentile interval, which corrects the bootstrap's narrowness at
    few items. p is the level at which the interval just reaches 0, so it is below 5 % if the 95 %
    interval excludes 0. Three or fewer items or groups have no interval.

    Source: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapters 13 and 15;
    Hesterberg (2015), "What Teachers Should Know About the Bootstrap", The American Statistician
    69, section 3.3.

    Args:
        before: A mark of each item.
        after: The mark now, in the same order.
        groups: The group of each item; the items of one group are drawn together. By default
            each item is its own group.

    Raises:
        ValueError: If there are no items, or the numbers of marks and groups differ.
    """
    n = _same_length(before, after)
    changes = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not np.isfinite(changes).all():
        raise ValueError("Marks must be finite; leave items out that could not be graded.")
    names = range(n) if groups is None else groups
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    members = [place[name] for name, _ in zip(names, changes, strict=True)]
    sums, sizes = np.bincount(members, weights=changes), np.bincount(members)
    value = float(changes.mean())
    low, high, p = _bootstrapped(sums, sizes)
    return Difference(value, low, high, p, n, 0, 0, "paired bootstrap", len(sums) - 1)


def _bootstrapped(sums: NDArray[Any], sizes: NDArray[Any]) -> tuple[float, float, float]:
    """Return interval and p of the mean of groups, from their sums and sizes."""
    num_groups = len(sums)
    if num_groups == 1:
        return -inf, inf, 1.0
    drawn = stats.bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        n_resamples=_NUM_RESAMPLES,
        batch=1000,  # of many items, all draws at once would take gigabytes
        method="percentile",
        rng=np.random.default_rng(0),
    ).bootstrap_distribution
    # A mean of n draws has (n - 1) / n of the variance of a mean of n items, and lighter tails than
    # a t distribution: normal quantiles are mapped to the corresponding t quantiles.
    df, narrowness = num_groups - 1, sqrt((num_groups - 1) / num_groups)
    rounding = 1e-12 * max(float(np.abs(drawn).max()), 1.0)
    tails = [(drawn <= rounding).sum(), (drawn >= -rounding).sum()]
    tail = (min(tails) + 1) / (_NUM_RESAMPLES + 1)  # no p of 0 from finitely many draws
    p = min(2 * float(stats.t.cdf(stats.norm.ppf(min(tail, 1)) * narrowness, df)), 1.0)
    level = float(stats.norm.cdf(stats.t.ppf(0.025, df) / narrowness))
    if level < 1 / (_NUM_RESAMPLES + 1):
        return -inf, inf, p
    low, high = np.quantile(drawn, [level, 1 - level])
    return float(low), float(high), p


def paired_over_seeds(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    same_runs: bool = False,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Test the difference of two means over seeds and items; the result generalises to both.

    Items are paired. Seeds are paired only if both sides are the same runs at two times, since runs
    of two strategies with one seed have nothing but the number in common. Seeds and items are
    crossed random effects, with variances that may differ between the sides: the variance is the
    sum of their mean squares minus what is counted twice, and the distribution is Student's t with
    Satterthwaite's degrees of freedom (``crossed_variance``). The test assumes that the runs of one
    side differ only in their seed, that items of different clusters are independent, and that means
    are about normally distributed. In simulations at 5 %, with 2 to 5 seeds, 30 and 200 items and
    weak to strong seed effects, a true null hypothesis is rejected in 1 to 6 % of cases.

    With one seed on both sides, a single item, or no variation, the test is ``paired_shares`` or,
    for ratings, ``paired_means``.

    Args:
        before: Marks by seed, then item.
        after: Marks by seed, then the same items.
        same_runs: Whether both sides are the same runs, seed by seed.
        clusters: The cluster of each item; items of one are not independent. By default each item
            is its own.

    Raises:
        ValueError: If there are no seeds or items, the numbers of items differ, or of seeds of the
            same runs, a mark is not finite, or only one side has a single seed, whose variation is
            unknown.
    """
    old, new = marks_array(before), marks_array(after)
    if old.shape[1] != new.shape[1]:
        raise ValueError(
            f"Both sides must have the same items, got {old.shape[1]} before and {new.shape[1]}."
        )
    if min(len(old), len(new)) == 1 and len(old) != len(new):
        raise ValueError(
            f"Both sides need two seeds or more, or one each, got {len(old)} and {len(new)}."
        )
    if same_runs and len(old) != len(new):
        raise ValueError(f"The same runs have the same seeds, got {len(old)} and {len(new)}.")
    changes = new.mean(axis=0) - old.mean(axis=0)
    sides = [new - old] if same_runs else [old, new]
    variance, df = crossed_variance(changes, sides, clusters)
    if len(old) == 1 or len(changes) == 1 or variance == 0:
        return _paired_items(old.mean(axis=0), new.mean(axis=0), clusters)
    value, error = float(changes.mean()), sqrt(variance)
    half = float(stats.t.ppf(0.975, df)) * error
    p = float(2 * stats.t.sf(abs(value) / error, df))
    low, high = value - half, value + half
    if are_shares(old) and are_shares(new):
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(value, low, high, p, len(changes), 0, 0, "t over seeds and items", df)


def _paired_items(
    before: NDArray[Any], after: NDArray[Any], clusters: Sequence[Hashable] | None
) -> Difference:
    if are_shares(before) and are_shares(after):
        return paired_shares(before.tolist(), after.tolist(), clusters)
    return paired_means(before.tolist(), after.tolist(), clusters)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Return p values adjusted for their number, so that 5 % holds for all of them together.

    Source: Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian
    Journal of Statistics 6.

    >>> holm({"math": 0.01, "code": 0.04})
    {'math': 0.02, 'code': 0.04}
    """
    # statsmodels' multipletests collects garbage at each call, a third of a second beside torch.
    adjusted: dict[K, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min((len(p_values) - rank) * float(p_values[key]), 1.0))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


def _same_length(before: Sequence[Any], after: Sequence[Any]) -> int:
    if len(before) != len(after):
        raise ValueError(
            f"Paired marks need the same items, got {len(before)} before and {len(after)} after."
        )
    if not len(before):
        raise ValueError("A paired test needs at least one item, got none.")
    return len(before)
