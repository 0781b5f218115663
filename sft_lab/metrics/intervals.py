"""Confidence intervals of shares and of means."""

from collections.abc import Hashable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, valid also for few items and shares of 0 or 1.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22.

    Args:
        correct: Number of correct items.
        total: Number of items.
        confidence: Share of such intervals that contain the true value.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: If the counts are not 0 <= correct <= total with a total above 0.

    >>> low, high = wilson(5, 10)
    >>> f"{low:.4f} {high:.4f}"
    '0.2366 0.7634'
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"An interval needs 0 <= correct <= total > 0, got {correct} of {total}.")
    _check_confidence(confidence)
    return share_interval(correct / total, total, NormalDist().inv_cdf((1 + confidence) / 2))


def share_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share for an effective number of items and a quantile.

    Args:
        share: In [0, 1].
        n: Effective number of independent items; need not be whole.
        quantile: Standard errors between the share and the ends of its interval, 1.96 for 95 %.

    Returns:
        Lower and upper end, in [0, 1].
    """
    centre = share + quantile**2 / (2 * n)
    half = quantile * sqrt(share * (1 - share) / n + quantile**2 / (4 * n**2))
    scale = 1 + quantile**2 / n
    # Rounding could exclude a share of 0 or 1 from its own interval.
    low = 0.0 if share == 0 else (centre - half) / scale
    high = 1.0 if share == 1 else (centre + half) / scale
    return low, high


def bootstrap(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean; equal arguments give equal intervals.

    Source: Efron (1979), "Bootstrap Methods: Another Look at the Jackknife", The Annals of
    Statistics 7; whole groups are drawn as in Davison and Hinkley (1997), section 3.8.

    Args:
        values: The values to average, in any unit.
        groups: The group of each value; values of one group are drawn together, because they are
            not independent. By default each value is its own group.
        confidence: Share of such intervals that contain the true mean.
        num_resamples: Number of resampled means.
        seed: Seed of the draws.

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        ValueError: If there are no values, or not one group per value.

    >>> bootstrap([0, 0, 3], confidence=0.9)
    (0.0, 2.0)
    """
    if not len(values):
        raise ValueError("An interval needs at least one value, got none.")
    _check_confidence(confidence)
    names = range(len(values)) if groups is None else groups
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    members = [place[name] for name, _ in zip(names, values, strict=True)]
    sums, sizes = np.bincount(members, weights=values), np.bincount(members)
    shape = (num_resamples, len(place))
    draws = np.random.default_rng(seed).integers(0, len(place), shape)
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
