"""The smallest share that keeps abilities, by halving the candidates instead of trying them all."""

from collections.abc import Callable, Mapping, Sequence
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
    """What a search has come to.

    Attributes:
        value: The smallest value that was shown to keep every ability; None where none was.
        retained: What was found of each value that was tried, in order of trial.
        trials: Runs that it took.
        seeds: Seeds that it had; of one, retained hold over items only, not for another seed.
    """

    value: str | None
    retained: Mapping[str, Retained]
    trials: int
    seeds: int


def judge(
    marks: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]],
    retention: Mapping[str, float],
    confidence: float,
    num_seeds: int,
) -> Retained:
    """Say whether runs keep every ability: its score at the end over its best one before.

    The verdict is about a value of the grid. Every ability's retention must be shown to be at
    least its limit, each at the confidence asked for: that all are is then as sure. That one is
    below its limit must be shown at a confidence corrected for their number. Seeds are added one
    after the other, and what one more look may get wrong is shared among the looks (both
    Bonferroni). Where there are several seeds, one alone shows nothing: how much they differ is not
    known yet. Where there is one, what is shown holds over items only.

    Seeds and items are taken as crossed random effects; the test is Student's t with no more
    degrees of freedom than seeds can give. It assumes that seeds scatter about normally. Where most
    keep all and a few lose much, no test can tell from two or three.

    Args:
        marks: Marks at the best boundary and at the end, each by seed, then item, by metric key.
        retention: The least retention by metric key, in (0, 1].
        confidence: One-sided, in (0.5, 1).
        num_seeds: Seeds that there are, those not yet run counted.

    >>> kept = [[1.0] * 40], [[1.0] * 40]
    >>> judge({"math": kept}, {"math": 0.9}, 0.9, num_seeds=1)
    'kept'
    >>> judge({"math": kept}, {"math": 0.9}, 0.9, num_seeds=3)
    'not shown'
    """
    num_looks = max(num_seeds - 1, 1)
    doubt = (1 - confidence) / num_looks
    all_kept = True
    for key, limit in retention.items():
        best, now = marks[key]
        if len(now) < min(num_seeds, 2) or not now[0]:
            return "not shown"
        needed = [[limit * mark for mark in seed] for seed in best]
        value, p = _one_sided(needed, now)
        if value < 0 and p < doubt / len(retention):
            return "not kept"
        all_kept = all_kept and value > 0 and p < doubt
    return "kept" if all_kept else "not shown"


def _one_sided(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Return the mean change of the same runs, and the chance of one so far on its side of 0."""
    changes = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    variance, df = crossed_variance(changes.mean(axis=0), [changes])
    if len(changes) == 1 or variance == 0:
        difference = paired_over_seeds(before, after, same_runs=True)
        return difference.value, difference.p / 2
    value = float(changes.mean())
    # Satterthwaite's df are an estimate themselves, and with two seeds often far too many.
    return value, float(stats.t.sf(abs(value) / sqrt(variance), min(df, len(changes) - 1)))


def search(
    values: Sequence[str],
    seeds: Sequence[int],
    judged: Callable[[str, Sequence[int]], Retained | None],
) -> Trial | Found:
    """Return the next run that is needed, or the result.

    The candidates are halved by the one in their middle, assuming that a larger share
    keeps no less. Where a seed shows nothing, the next one is added; a value of which all seeds
    together show nothing counts as one that does not keep. The search is stateless: the same
    judgements give the same next run.

    Args:
        values: The candidates, ascending.
        seeds: Seeds, in the order in which they are added.
        judged: Judges the runs of a value under some seeds; None while one of them is missing.

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
            found = judged(value, seeds[:count])
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
