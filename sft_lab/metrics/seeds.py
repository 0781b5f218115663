"""Means over seeds, and over seeds and items together, with intervals that cover both."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sft_lab.metrics.clusters import cluster_sums, variance_of_mean
from sft_lab.metrics.intervals import share_interval
from sft_lab.metrics.score import Score, accuracy, mean_score

Marks = NDArray[np.float64]
"""Marks by seed and item, float64 ``[seeds, items]``."""


@dataclass(frozen=True)
class SeedScore:
    """A mean over seeds.

    Attributes:
        value: The mean, in the unit of the values.
        low: Lower end of the 95 % interval; None for a single seed.
        high: Upper end.
        n: Number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def over_seeds(values: Sequence[float]) -> SeedScore:
    """Return the mean of one number per seed, with Student's t interval.

    The interval generalises to other seeds on the same items. It assumes that values are normally
    distributed over seeds; for a share it may exceed [0, 1].

    Raises:
        ValueError: If there is no value, or one is not finite.

    >>> score = over_seeds([0.5, 0.75, 1.0])  # 0.75 +- 4.30 * 0.25 / sqrt(3)
    >>> f"{score.value} [{score.low:.3f}, {score.high:.3f}] of {score.n}"
    '0.75 [0.129, 1.371] of 3'
    """
    if not len(values):
        raise ValueError("A mean over seeds needs at least one value, got none.")
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"Values must be finite, got {list(values)}.")
    mean, n = float(found.mean()), len(found)
    if n == 1:
        return SeedScore(mean, None, None, n)
    half = float(stats.t.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / sqrt(n)
    return SeedScore(mean, mean - half, mean + half, n)


def mean_over_seeds_and_items(
    marks: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Return the mean over seeds and items; its interval generalises to others of both.

    Seeds and items are crossed random effects, see ``crossed_variance``. For marks in {0, 1} the
    interval is Wilson's with the effective number of items, which stays in [0, 1]; for ratings it
    is Student's. With one seed, or no variation, it is the interval of a single run.

    Source: Franco, Little, Louis and Slud (2019), "Comparative Study of Confidence Intervals for
    Proportions in Complex Sample Surveys", Journal of Survey Statistics and Methodology 7.

    Args:
        marks: By seed, then item; the same items in every seed.
        clusters: The cluster of each item; by default each item is its own.

    Returns:
        The score; ``n`` counts marks, seeds times items.

    Raises:
        ValueError: If there are no seeds or items, seeds differ in their number of items, or a
            mark is not finite.
    """
    found = marks_array(marks)
    mean, num_marks = float(found.mean()), found.size
    variance, df = crossed_variance(found.mean(axis=0), [found], clusters)
    if len(found) == 1 or variance == 0:
        score = _score_of_items(found.mean(axis=0), clusters)
        return Score(score.value, score.low, score.high, num_marks)
    quantile = float(stats.t.ppf(0.975, df))
    if are_shares(found):
        n = min(mean * (1 - mean) / variance, num_marks)
        return Score(mean, *share_interval(mean, n, quantile), num_marks)
    half = quantile * sqrt(variance)
    return Score(mean, mean - half, mean + half, num_marks)


def crossed_variance(
    per_item: Marks, sides: Sequence[Marks], clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """Return the variance of a mean over randomly drawn seeds and items, and its df.

    All sides (one, or the two that are compared) have the same items, and each its own seeds. With
    MS the mean squares of the two-way table of a side with S seeds and n items, the variance is
    var(per_item) / n + sum over sides of (MS_seed - MS_rest) / (S n): the variation over items
    plus the variation over seeds, minus what is in both. It is never less than either alone. The
    degrees of freedom are Satterthwaite's. Of items in clusters, the variation over items and the
    rest are those of the clusters' sums, as in ``clusters.variance_of_mean``.

    Source: Cornfield and Tukey (1956), "Average Values of Mean Squares in Factorials", The Annals
    of Mathematical Statistics 27; Satterthwaite (1946), "An Approximate Distribution of Estimates
    of Variance Components", Biometrics Bulletin 2.

    Args:
        per_item: The values to average, by item: means over seeds, or differences of two.
        sides: Marks ``[seeds, items]``; the seeds of the sides are independent.
        clusters: The cluster of each item; by default each item is its own.

    Returns:
        Variance, in the squared unit of the marks, and degrees of freedom; 0 and inf if nothing
        varies. With a single item, or a single seed, only the other contributes.
    """
    n = len(per_item)
    items, df_items = variance_of_mean(per_item, clusters)
    num_clusters = df_items + 1
    seeds = rest = squares = 0.0
    for side in sides:
        num_seeds = len(side)
        if num_seeds == 1:
            continue
        of_seeds = float(side.mean(axis=1).var(ddof=1)) / num_seeds
        residuals = side - side.mean(axis=0) - side.mean(axis=1, keepdims=True) + side.mean()
        df = (num_seeds - 1) * max(df_items, 1)
        sums = cluster_sums(residuals, clusters)
        of_rest = float((sums**2).sum()) * num_clusters / df / (num_seeds * n**2)
        seeds, rest = seeds + of_seeds, rest + of_rest
        squares += of_seeds**2 / (num_seeds - 1) + of_rest**2 / df
    squares += items**2 / max(df_items, 1)
    variance = max(items + seeds - rest, items, seeds)
    return variance, variance**2 / squares if squares else inf


def marks_array(marks: Sequence[Sequence[float]]) -> Marks:
    """Return marks as an array ``[seeds, items]``.

    Raises:
        ValueError: If there are no seeds or items, seeds differ in their number of items, or a
            mark is not finite.
    """
    lengths = sorted({len(of_seed) for of_seed in marks})
    if not lengths or lengths[0] == 0:
        raise ValueError(f"Marks need at least one seed and one item, got {len(marks)} seeds.")
    if len(lengths) > 1:
        raise ValueError(f"Seeds must have the same items, got {lengths} of them.")
    found = np.asarray(marks, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError("Marks must be finite; leave items out that could not be graded.")
    return found


def are_shares(marks: Marks) -> bool:
    """Return whether every mark is 0 or 1, and none a rating."""
    return bool(np.isin(marks, (0, 1)).all())


def _score_of_items(marks: Marks, clusters: Sequence[Hashable] | None) -> Score:
    if are_shares(marks):
        return accuracy([bool(mark) for mark in marks], clusters)
    return mean_score(marks.tolist(), clusters)
