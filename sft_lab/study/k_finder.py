"""The smallest share that keeps abilities, by halving the candidates instead of trying them all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.metrics.paired import paired_over_seeds

Verdict = Literal["kept", "not kept", "not shown"]


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
        verdicts: What was found of each value that was tried, in order of trial.
        trials: Runs that it took.
    """

    value: str | None
    verdicts: Mapping[str, Verdict]
    trials: int


def judge(
    marks: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]],
    retention: Mapping[str, float],
    confidence: float,
) -> Verdict:
    """Say whether runs keep every ability: its score at the end over its best one before.

    Every ability's retention must be shown to be at least its limit, each at the confidence asked
    for: that all are is then as sure. That one is below its limit must be shown at a confidence
    corrected for their number (Bonferroni).

    Args:
        marks: Marks at the best boundary and at the end, each by seed, then item, by metric key.
        retention: The least retention by metric key, in (0, 1].
        confidence: One-sided, in (0.5, 1).

    >>> kept = [[1.0] * 40], [[1.0] * 40]
    >>> judge({"math": kept}, {"math": 0.9}, 0.9)
    'kept'
    """
    doubt = 1 - confidence
    all_kept = True
    for key, limit in retention.items():
        best, now = marks[key]
        needed = [[limit * mark for mark in seed] for seed in best]
        difference = paired_over_seeds(needed, now, same_runs=True)
        one_sided = difference.p / 2
        if difference.value < 0 and one_sided < doubt / len(retention):
            return "not kept"
        all_kept = all_kept and difference.value > 0 and one_sided < doubt
    return "kept" if all_kept else "not shown"


def search(
    values: Sequence[str],
    seeds: Sequence[int],
    verdict: Callable[[str, Sequence[int]], Verdict | None],
) -> Trial | Found:
    """Return the next run that is needed, or the result.

    The candidates are halved by the one in their middle, on the understanding that a larger share
    keeps no less. Where a seed shows nothing, the next one is added; a value of which all seeds
    together show nothing counts as one that does not keep. It keeps no state: told the same
    verdicts, it comes to the same place.

    Args:
        values: The candidates, ascending.
        seeds: Seeds, in the order in which they are added.
        verdict: What the runs of a value under some seeds show; None while one of them is missing.

    >>> enough = {"0": "not kept", "1/64": "kept", "1/16": "kept", "1/4": "kept"}
    >>> search(list(enough), [0], lambda value, seeds: enough[value])
    Found(value='1/64', verdicts={'1/64': 'kept', '0': 'not kept'}, trials=2)
    """
    known: dict[str, Verdict] = {}
    trials = 0
    below, above = -1, len(values)  # the largest that does not keep, the smallest that does
    while above - below > 1:
        value = values[(below + above) // 2]
        shown: Verdict = "not shown"
        for count in range(1, len(seeds) + 1):
            found = verdict(value, seeds[:count])
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
    return Found(values[above] if above < len(values) else None, known, trials)
