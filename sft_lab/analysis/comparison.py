"""Arms compared with a reference, and each with its own best: differences with their tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sft_lab.analysis.arms import Arm
from sft_lab.analysis.outcomes import Outcomes, graded_in_all, same_items
from sft_lab.analysis.protocols import Mismatch
from sft_lab.metrics.paired import Difference, holm, paired_over_seeds
from sft_lab.metrics.score import Score
from sft_lab.metrics.seeds import mean_over_seeds_and_items

LEVEL = 0.05
Verdict = Literal["higher", "lower", "no difference shown"]


@dataclass(frozen=True)
class Change:
    """One ability, before and after.

    Attributes:
        arm: Index of the arm that is after.
        benchmark: The benchmark.
        key: The metric key of its first score.
        before: Where it is compared with: the reference's name, or a boundary of the arm itself.
        difference: After minus before on the items that both graded; None where there is no test.
        p_holm: Corrected for all tests of the comparison.
        left_out: Why there is no test; empty where there is one.
        gained: Ids of items right only after, in every seed; none where marks are ratings.
        lost: Ids of items right only before, in every seed.
    """

    arm: int
    benchmark: str
    key: str
    before: str
    difference: Difference | None = None
    p_holm: float | None = None
    left_out: str = ""
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """What the corrected test shows at 5 %; None where there is none."""
        if self.difference is None or self.p_holm is None:
            return None
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "higher" if self.difference.value > 0 else "lower"


@dataclass(frozen=True)
class Comparison:
    """Everything that ``compare`` tells.

    Attributes:
        arms: In the order asked for.
        reference: Index of the arm that the others are compared with.
        differences: Every other arm against the reference, at the end of both.
        forgetting: Every arm at its end against its best earlier boundary.
        mismatches: Where runs measured otherwise than the reference's first run.
    """

    arms: tuple[Arm, ...]
    reference: int
    differences: tuple[Change, ...]
    forgetting: tuple[Change, ...]
    mismatches: tuple[Mismatch, ...]


def comparison(arms: Sequence[Arm], reference: int, mismatches: Sequence[Mismatch]) -> Comparison:
    """Compare arms with a reference, and each with its own best; p values are Holm's over all.

    A best boundary is chosen by its score, so that by chance alone the end is lower: its p is
    multiplied by the number of boundaries it was chosen from (Bonferroni).
    """
    against = [
        _against_reference(arms, index, reference, benchmark, key)
        for index, arm in enumerate(arms)
        if index != reference
        for benchmark, key in arm.keys.items()
        if arms[reference].keys.get(benchmark) == key
    ]
    within = [
        _against_best(arm, index, benchmark, key)
        for index, arm in enumerate(arms)
        for benchmark, key in arm.keys.items()
    ]
    changes = [*against, *within]
    corrected = holm({n: c.difference.p for n, c in enumerate(changes) if c.difference is not None})
    changes = [replace(change, p_holm=corrected.get(n)) for n, change in enumerate(changes)]
    return Comparison(
        tuple(arms),
        reference,
        tuple(changes[: len(against)]),
        tuple(changes[len(against) :]),
        tuple(mismatches),
    )


def score_at(arm: Arm, benchmark: str, boundary: int) -> Score | None:
    """Return an arm's first score at a boundary: of one run as it has it, else over seeds."""
    if len(arm.runs) == 1:
        result = arm.runs[0].result
        return result.boundaries[boundary].scores.get(result.first_keys[benchmark])
    found = arm.at(benchmark, boundary)
    if found is None or not same_items(found):
        return None
    items = graded_in_all(found)
    return mean_over_seeds_and_items(_matrix(found, items)) if items else None


def _against_reference(
    arms: Sequence[Arm], index: int, reference: int, benchmark: str, key: str
) -> Change:
    before, after = arms[reference], arms[index]
    change = Change(index, benchmark, key, before.name)
    unfinished = next((arm.name for arm in (before, after) if not arm.is_finished), None)
    if unfinished is not None:
        return replace(change, left_out=f"{unfinished!r} has not come to its end")
    if min(len(before.runs), len(after.runs)) == 1 != max(len(before.runs), len(after.runs)):
        return replace(change, left_out="one side has a single seed")
    return _tested(change, before.at(benchmark, -1), after.at(benchmark, -1), same_runs=False)


def _against_best(arm: Arm, index: int, benchmark: str, key: str) -> Change:
    change = Change(index, benchmark, key, "")
    if not arm.is_finished:
        return replace(change, left_out=f"{arm.name!r} has not come to its end")
    earlier = [score_at(arm, benchmark, n) for n in range(arm.num_boundaries - 1)]
    values = {n: score.value for n, score in enumerate(earlier) if score is not None}
    if not values:
        return replace(change, left_out="no earlier score")
    best = max(values, key=lambda n: values[n])
    change = replace(change, before=boundary_name(arm, best))
    change = _tested(change, arm.at(benchmark, best), arm.at(benchmark, -1), same_runs=True)
    if change.difference is None:
        return change
    p = min(change.difference.p * len(values), 1.0)
    return replace(change, difference=replace(change.difference, p=p))


def _tested(
    change: Change,
    before: list[Outcomes] | None,
    after: list[Outcomes] | None,
    same_runs: bool,
) -> Change:
    if before is None or after is None:
        return replace(change, left_out="the score is no mean over items")
    if not same_items([*before, *after]):
        return replace(change, left_out="items differ")
    items = graded_in_all([*before, *after])
    if not items:
        return replace(change, left_out="no item was graded on both sides")
    old, new = _matrix(before, items), _matrix(after, items)
    was, now = ([set(side) for side in zip(*marks, strict=True)] for marks in (old, new))
    return replace(
        change,
        difference=paired_over_seeds(old, new, same_runs=same_runs),
        gained=tuple(i for i, a, b in zip(items, was, now, strict=True) if (a, b) == ({0}, {1})),
        lost=tuple(i for i, a, b in zip(items, was, now, strict=True) if (a, b) == ({1}, {0})),
    )


def boundary_name(arm: Arm, boundary: int) -> str:
    """Return the name of the stage that a boundary ends."""
    return arm.runs[0].result.boundaries[boundary].after or "(base)"


def _matrix(found: Sequence[Outcomes], items: Sequence[str]) -> list[list[float]]:
    return [[run.marks[item] for item in items] for run in found]
