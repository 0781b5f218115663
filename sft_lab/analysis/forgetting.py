"""Forgetting of runs, against the best full evaluation at an earlier stage boundary.

Definitions are those of ``metrics.forgetting``; they are applied here to a run's evaluations, to
its items and to a group's mean over seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Measurements, Side, boundary_of, end_of
from sft_lab.metrics.forgetting import Assessed, best_boundary, changes
from sft_lab.metrics.seeds import SeedScore, over_seeds
from sft_lab.runs.evaluations import history
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class ChangedItem:
    """An item that a run forgot or gained between its reference and the end of training.

    Attributes:
        id: The item.
        kind: ``forgotten``: right at the reference, wrong at the end; ``gained``: the reverse.
        prompt: The question.
        stage: The stage that ended at the reference; ``base`` before training.
        step: Optimizer steps at the reference.
        before: The answer at the reference.
        after: The answer at the end.
    """

    id: str
    kind: Literal["forgotten", "gained"]
    prompt: str
    stage: str
    step: int
    before: str
    after: str


@dataclass(frozen=True)
class Drop:
    """A group's change of an ability from its reference to the end of training.

    Attributes:
        group: The group.
        best: The reference: the earlier boundary with the highest mean over seeds.
        comparison: From there to the end, within each run; its p counts the boundaries that the
            reference was chosen from.
    """

    group: RunGroup
    best: Side
    comparison: Comparison


def history_of(run: RunResult, key: str) -> list[Assessed]:
    """Return a run's evaluations of a score, as the definitions of forgetting take them."""
    return history(run.points, key)


def reference_of(run: RunResult, ability: Ability) -> Assessed | None:
    """Return a finished run's best full evaluation at a boundary before its end, if any."""
    if run.last is None or ability.key not in run.last.scores:
        return None
    return best_boundary(history_of(run, ability.key), run.last.step)


def changes_of(run: RunResult, ability: Ability) -> dict[str, float]:
    """Return a finished run's forgetting, retention, backward transfer and change from base.

    Each is absent if it has no value; a run that did not reach its end has none.
    """
    benchmark = run.benchmarks.get(ability.benchmark)
    if run.last is None or ability.key not in run.last.scores or benchmark is None:
        return {}
    found = [found for found in history_of(run, ability.key) if found.step <= run.last.step]
    return changes(found, run.record.trained_at(benchmark.source), benchmark.chance)


def can_forget(group: RunGroup, ability: Ability) -> bool:
    """Return whether forgetting has a value: the ability was learned, and training went on."""
    return any("forgetting" in changes_of(run, ability) for run in group.runs.values())


def retention_of(group: RunGroup, ability: Ability) -> SeedScore | None:
    """Return a group's mean retention over seeds; None if a seed has none."""
    found = [changes_of(run, ability).get("retention") for run in group.runs.values()]
    known = [value for value in found if value is not None]
    return over_seeds(known) if known and len(known) == len(found) else None


def drop_of(place: str, group: RunGroup, ability: Ability, measured: Measurements) -> Drop | None:
    """Return a group's change of an ability since its reference; None without an earlier score.

    The reference is chosen by its score, so that by chance alone the end is lower: p is multiplied
    by the number of boundaries it was chosen from (Bonferroni).
    """
    sides = [boundary_of(group, index) for index in range(group.num_boundaries - 1)]
    means = enumerate(measured.mean(ability, side) for side in sides)
    history = [Assessed(index, mean, True) for index, mean in means if mean is not None]
    best = best_boundary(history, step=len(sides))
    if best is None:
        return None
    reference = sides[best.step]
    found = measured.compare(
        place, ability, reference, end_of(group), same_runs=True, chosen_from=len(history)
    )
    return Drop(group, reference, found)


def changed_items(
    run: RunResult, ability: Ability, measured: Measurements
) -> Sequence[ChangedItem]:
    """Return the items that a finished run forgot and gained, forgotten ones first.

    An item is right with a mark of 1 and wrong with 0; shares of samples are neither, and
    benchmarks of ratings have no such items. The reference is the run's best full evaluation at an
    earlier stage boundary, that of its forgetting.
    """
    best = reference_of(run, ability)
    if best is None or run.last is None or not ability.is_share:
        return []
    before = measured.outcomes(run, ability, best.step)
    after = measured.outcomes(run, ability, run.last.step)
    if before is None or after is None:
        return []
    stage = next(point.after or "base" for point in run.points if point.step == best.step)
    found = [
        ChangedItem(
            id=item,
            kind="gained" if mark else "forgotten",
            prompt=after.prompts[item][0],
            stage=stage,
            step=best.step,
            before=before.answers[item][0],
            after=after.answers[item][0],
        )
        for item, mark in after.marks.items()
        if {before.marks.get(item), mark} == {0, 1}
    ]
    return sorted(found, key=lambda item: item.kind)
