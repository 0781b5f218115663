"""Scores: means with their 95 % intervals, and pass@k."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

import numpy as np
from scipy import stats

from sft_lab.metrics.clusters import variance_of_mean
from sft_lab.metrics.intervals import bootstrap, share_interval, wilson


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval.

    Attributes:
        value: The mean, in [0, 1]; for ratings 1 to 10.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values.
    """

    value: float
    low: float
    high: float
    n: int


def accuracy(marks: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> Score:
    """Return the share of true marks, with Wilson's interval.

    Of items in clusters it is Wilson's interval with the effective number of items, their number
    divided by the design effect, and Student's quantile for the number of clusters. Where no mark
    differs, the effective number is that of the clusters; a single cluster says nothing.

    Source: Franco, Little, Louis and Slud (2019), "Comparative Study of Confidence Intervals for
    Proportions in Complex Sample Surveys", Journal of Survey Statistics and Methodology 7.

    Args:
        marks: One per item.
        clusters: The cluster of each item; by default each item is its own.

    Raises:
        ValueError: If there are no marks, or not one cluster per mark.

    >>> accuracy([True, False, True, True]).value
    0.75
    """
    n = len(marks)
    share = sum(marks) / n if n else 0.0
    if clusters is None or len(set(clusters)) == len(clusters):
        return Score(share, *wilson(sum(marks), n), n)
    variance, df = variance_of_mean(np.asarray(marks, dtype=np.float64), clusters)
    if df == 0:
        return Score(share, 0.0, 1.0, n)
    effective = min(share * (1 - share) / variance, n) if variance else df + 1
    return Score(share, *share_interval(share, effective, float(stats.t.ppf(0.975, df))), n)


def mean_score(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Score:
    """Return a mean, with the bootstrap's interval.

    Args:
        values: The values to average.
        groups: The group of each value; values of one group are drawn together. By default each
            value is its own group.

    Raises:
        ValueError: If there are no values.
    """
    low, high = bootstrap(values, groups)
    return Score(fmean(values), low, high, len(values))


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of ``k`` samples of a task passes.

    It is 1 - C(n - c, k) / C(n, k): the share of all choices of k of the n samples that include one
    of the c that passed.

    Source: Chen et al. (2021), "Evaluating Large Language Models Trained on Code", equation 1.

    Raises:
        ValueError: If the counts are not 0 <= passed <= samples >= k >= 1.

    >>> pass_at_k(num_samples=5, num_passed=2, k=2)  # 1 - 3 / 10
    0.7
    """
    if not 0 <= num_passed <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            "pass@k needs 0 <= passed <= samples and 1 <= k <= samples, "
            f"got {num_passed} of {num_samples} and k = {k}."
        )
    return 1 - comb(num_samples - num_passed, k) / comb(num_samples, k)
