"""Clusters of items that are not independent, such as problems of one structure."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cluster_sums(values: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """Return the sums of values over the items of each cluster.

    Args:
        values: Float64 ``[..., items]``.
        clusters: The cluster of each item; by default each item is its own.

    Returns:
        Float64 ``[..., clusters]``.

    Raises:
        ValueError: If there is not one cluster per item.
    """
    if clusters is None:
        return values
    if len(clusters) != values.shape[-1]:
        raise ValueError(f"{values.shape[-1]} items need as many clusters, got {len(clusters)}.")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    members = np.array([places[name] for name in clusters])
    if len(places) == len(members):
        return values
    order = np.argsort(members, kind="stable")
    starts = np.searchsorted(members[order], np.arange(len(places)))
    return np.add.reduceat(values[..., order], starts, axis=-1)


def variance_of_mean(
    values: Floats, clusters: Sequence[Hashable] | None = None
) -> tuple[float, int]:
    """Return the variance of a mean over items that were drawn in clusters, and its df.

    It is the sum of the squared sums of each cluster's deviations, times G / (G - 1) for G
    clusters, over the squared number of items. Where every item is its own cluster, that is the
    squared standard error of the mean.

    Source: Liang and Zeger (1986), "Longitudinal Data Analysis Using Generalized Linear Models",
    Biometrika 73; G / (G - 1) is the usual correction for few clusters.

    Args:
        values: One per item.
        clusters: The cluster of each item; by default each item is its own.

    Returns:
        The variance, 0 of a single cluster, and G - 1.
    """
    sums = cluster_sums(values - values.mean(), clusters)
    count = len(sums)
    if count == 1:
        return 0.0, 0
    return float((sums**2).sum()) * count / (count - 1) / len(values) ** 2, count - 1
