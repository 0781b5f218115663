"""Find the smallest share that keeps abilities by binary search instead of trying them all."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from scipy import stats

from sft_lab.metrics.paired import paired_over_seeds
from sft_lab.metrics.seeds import crossed_variance

Retained = Literal["kept", "not kept", "not shown"]


@dataclass(frozen=True)
class Trial:
    """A run that the search needs next."""

    value: str
    seed: int


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        value: The smallest value that was shown to keep every ability; None if none was.
        retained: The conclusion about each value that was tried, in order of trial.
        trials: Number of runs it took.
        seeds: Number of seeds available; with one, conclusions generalize over items only, not to
            another seed.
    """

    value: str | None
    retained: Mapping[str, Retained]
    trials: int
    seeds: int


def assess(
    marks: Mapping[
        str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]], Sequence[Hashable]]
    ],
    retention: Mapping[str, float],
    confidence: float,
    num_seeds: int,
) -> Retained:
    """Test whether the runs of a grid value retain every ability.

    Retention is an ability's score at the end over its best score at an earlier boundary. "kept"
    requires that every ability's retention is shown to be at least its limit, each at the given
    confidence; the conjunction needs no correction. "not kept" requires that one is shown to be
    below its limit, Bonferroni-corrected for the number of abilities. Seeds are added one at a
    time, so the error probability is also split over the interim tests (Bonferroni). With several
    seeds, the first alone is always inconclusive, because the spread between seeds is unknown.
    With a single seed, the conclusion generalizes over items only.

    Seeds and items are crossed random effects. The test is Student's t with at most one degree of
    freedom per additional seed, and assumes roughly normal scatter between seeds: if most seeds
    keep everything and a few lose much, two or three seeds cannot reveal it.

    Args:
        marks: By metric key, marks at the best boundary and at the end, each by seed, then item,
            and the cluster of each item.
        retention: Minimum retention by metric key, in (0, 1].
        confidence: One-sided, in (0.5, 1).
        num_seeds: Number of seeds available, including those not yet run.

    >>> kept = [[1.0] * 40], [[1.0] * 40], range(40)
    >>> assess({"math": kept}, {"math": 0.9}, 0.9, num_seeds=1)
    'kept'
    >>> assess({"math": kept}, {"math": 0.9}, 0.9, num_seeds=3)
    'not shown'
    """
    num_tests = max(num_seeds - 1, 1)
    alpha = (1 - confidence) / num_tests
    all_kept = True
    for key, limit in retention.items():
        best, now, clusters = marks[key]
        if len(now) < min(num_seeds, 2) or not now[0]:
            return "not shown"
        needed = [[limit * mark for mark in seed] for seed in best]
        value, p = _one_sided(needed, now, clusters)
        if value < 0 and p < alpha / len(retention):
            return "not kept"
        all_kept = all_kept and value > 0 and p < alpha
    return "kept" if all_kept else "not shown"


def _one_sided(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    clusters: Sequence[Hashable],
) -> tuple[float, float]:
    """Return the mean change of the same runs, and its one-sided p-value."""
    changes = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    variance, df = crossed_variance(changes.mean(axis=0), [changes], clusters)
    if len(changes) == 1 or variance == 0:
        difference = paired_over_seeds(before, after, same_runs=True, clusters=clusters)
        return difference.value, difference.p / 2
    value = float(changes.mean())
    # Satterthwaite's df are themselves an estimate, often far too high with two seeds.
    return value, float(stats.t.sf(abs(value) / sqrt(variance), min(df, len(changes) - 1)))


def search(
    values: Sequence[str],
    seeds: Sequence[int],
    conclude: Callable[[str, Sequence[int]], Retained | None],
) -> Trial | Found:
    """Return the next run that is needed, or the result.

    This is a binary search, which assumes that a larger share never keeps less. While a value is
    inconclusive, another seed is added; if it stays inconclusive with all seeds, it counts as not
    keeping. The function is stateless: the same conclusions give the same next step.

    Args:
        values: The candidates, ascending.
        seeds: Seeds, in the order in which they are added.
        conclude: Returns the conclusion from the runs of a value with some seeds, or None while a
            run is missing.

    >>> enough = {"0": "not kept", "1/64": "kept", "1/16": "kept", "1/4": "kept"}
    >>> search(list(enough), [0], lambda value, seeds: enough[value])
    Found(value='1/64', retained={'1/64': 'kept', '0': 'not kept'}, trials=2, seeds=1)
    """
    known: dict[str, Retained] = {}
    trials = 0
    below, above = -1, len(values)  # the largest that does not keep, the smallest that does
    while above - below > 1:
        value = values[(below + above) // 2]
        shown: Retained = "not shown"
        for count in range(1, len(seeds) + 1):
            found = conclude(value, seeds[:count])
            if found is None:
                return Trial(value, seeds[count - 1])
            trials += 1
            shown = found
            if shown != "not shown":
                break
        known[value] = shown
        if shown == "kept":
            above = values.index(value)
        else:
            below = values.index(value)
    return Found(values[above] if above < len(values) else None, known, trials, len(seeds))
