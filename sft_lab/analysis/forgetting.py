"""Forgetting of runs, against the best full evaluation at an earlier stage boundary.

Definitions are those of ``metrics.forgetting``; they are applied here to a run's evaluations, to
its items and to a group's mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Measurements, Side, boundary_of, end_of
from sft_lab.metrics.forgetting import Assessed, best_boundary
from sft_lab.metrics.seeds import SeedScore, over_seeds
from sft_lab.runs.evaluations import Tracked, history, strict_key
from sft_lab.runs.results import Point, RunResult


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
    """Return a finished run's changes of an ability at its end, see ``Tracked.changes``.

    Each is absent if it has no value; a run that did not reach its end has none.
    """
    benchmark = run.benchmarks.get(ability.benchmark)
    if run.last is None or benchmark is None:
        return {}
    tracked = Tracked(
        ability.key,
        run.record.trained_at(benchmark.source),
        benchmark.chance,
        strict_key(ability.key, benchmark.strict_score),
    )
    return tracked.changes([point for point in run.points if point.step <= run.last.step])


def can_forget(group: RunGroup, ability: Ability) -> bool:
    """Return whether forgetting has a value: the ability was learned, and training went on."""
    return any("forgetting" in changes_of(run, ability) for run in group.runs.values())


def change_of(group: RunGroup, ability: Ability, name: str) -> SeedScore | None:
    """Return the mean over seeds of a change, such as ``retention``; None if a seed has none."""
    return _mean([changes_of(run, ability).get(name) for run in group.runs.values()])


def form_at(run: RunResult, ability: Ability, point: Point) -> float | None:
    """Return the share of answers in the form that prompts ask for; None if it is not known."""
    names = [name for name, key in run.record.abilities.items() if key == ability.key]
    return next((point.forms[name].value for name in names if name in point.forms), None)


def form_of(side: Side, ability: Ability) -> SeedScore | None:
    """Return the mean over seeds of the share of answers in form; None if a seed has none."""
    return _mean([form_at(run, ability, point) for run, point in side.points.values()])


def _mean(values: Sequence[float | None]) -> SeedScore | None:
    known = [value for value in values if value is not None]
    return over_seeds(known) if known and len(known) == len(values) else None


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


Changed = Mapping[str, tuple[RunResult, Sequence[ChangedItem]]]
"""By ability's name, the run of several stages that forgot most of it, and what changed there."""


def most_forgotten(
    runs: Sequence[RunResult], abilities: Sequence[Ability], measured: Measurements
) -> Changed:
    """Return the items that changed in the run that forgot most of each ability."""
    found = {}
    for ability in abilities:
        falls = [(fall_of(run, ability), run) for run in runs if len(run.stages) > 1]
        depth, run = max(falls, key=lambda fall: fall[0], default=(0.0, None))
        if run is not None and depth > 0 and (items := changed_items(run, ability, measured)):
            found[ability.name] = (run, items)
    return found


def fall_of(run: RunResult, ability: Ability) -> float:
    """Return a run's reference minus its score at the end; 0 without one of them."""
    reference = reference_of(run, ability)
    if reference is None or run.last is None:
        return 0.0
    return reference.score.value - run.last.scores[ability.key].value
