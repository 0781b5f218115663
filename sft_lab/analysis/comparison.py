"""The comparison of runs: each against a reference, and each against its own best boundary."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.family import Family, corrected_together
from sft_lab.analysis.forgetting import Drop, drop_of
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import (
    Comparison,
    MarksReader,
    Measurements,
    boundary_of,
    end_of,
)
from sft_lab.analysis.protocols import Mismatch, mismatches, refuse
from sft_lab.analysis.run_groups import over_seeds, single_runs
from sft_lab.errors import RequestError
from sft_lab.metrics.equivalence import MARGIN
from sft_lab.metrics.score import Score
from sft_lab.runs.results import ItemAnswer, RunResult, read_answers
from sft_lab.runs.store import RunStore


@dataclass(frozen=True)
class RunComparison:
    """Groups of runs compared; a single run is a group of one.

    Attributes:
        groups: In the order asked for.
        reference: Index of the group that the others are compared with.
        differences: By index, every other group against the reference, both at their end.
        forgetting: By index, every group at its end against its best earlier boundary.
        mismatches: Where runs were measured otherwise than the reference's first run.
        measured: Means and items of the runs.
    """

    groups: tuple[RunGroup, ...]
    reference: int
    differences: tuple[tuple[int, Comparison], ...]
    forgetting: tuple[tuple[int, Drop], ...]
    mismatches: tuple[Mismatch, ...]
    measured: Measurements

    @property
    def runs(self) -> dict[str, RunResult]:
        """All runs by id, in the order of their groups."""
        return {run.run_id: run for group in self.groups for run in group.runs.values()}

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons; p values are corrected over them together."""
        within = [drop.comparison for _, drop in self.forgetting]
        return [*(comparison for _, comparison in self.differences), *within]

    def score(self, group: RunGroup, ability: Ability, boundary: int) -> Score | None:
        """Return a group's score at a boundary: of one run as recorded, else the mean."""
        return self.measured.mean(ability, boundary_of(group, boundary))

    def is_flagged(self, group: RunGroup, ability: Ability) -> bool:
        """Return whether a group measured an ability under another protocol than the reference."""
        return any(
            found.is_protocol
            and found.benchmark == ability.benchmark
            and found.run_id in group.run_ids
            for found in self.mismatches
        )


def compare(
    store: RunStore,
    names: Sequence[str],
    reference: str | None = None,
    group_seeds: bool = False,
    allow_different_protocols: bool = False,
    margin: float | None = None,
) -> RunComparison:
    """Return the comparison of the runs of the given names.

    Args:
        store: The store that holds them.
        names: Ids, unique beginnings of ids, or names.
        reference: What the others are compared with, one of them or one more; else the first.
        group_seeds: Take runs of one name without ``seed N`` together.
        allow_different_protocols: Compare also what was measured under different protocols.
        margin: The least difference that matters, as a part of a score's scale; by default
            5 points of 100.

    Raises:
        RequestError: If a name fits no run, more than one, or one that has not trained; if a seed
            is there twice; or if protocols differ and may not.
    """
    if not names:
        raise RequestError(
            "compare needs at least one run; name an id, a beginning of one, or a name."
        )
    find = over_seeds if group_seeds else single_runs
    groups = find(store, names)
    index = 0
    if reference is not None:
        (wanted,) = find(store, [reference])
        holding = [n for n, group in enumerate(groups) if wanted.run_ids <= group.run_ids]
        if holding:
            index = holding[0]
        else:
            groups = [wanted, *groups]
    first = next(iter(groups[index].runs.values()))
    others = [run for group in groups for run in group.runs.values() if run is not first]
    found = mismatches(first, others)
    if not allow_different_protocols:
        refuse(found, {run.run_id: run.name for run in others}, first.name)

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        return read_answers(store, run.run_id, benchmark, step)

    return comparison(groups, index, found, read, MARGIN if margin is None else margin)


def comparison(
    groups: Sequence[RunGroup],
    reference: int,
    mismatches: Sequence[Mismatch],
    reader: MarksReader,
    margin: float = MARGIN,
) -> RunComparison:
    """Compare groups with a reference, and each with its own best; p values are Holm's over all."""
    # Different protocols were refused before, or asked for.
    measurements = Measurements(reader, across_protocols=True, margin=margin)
    keys = {ability.key for ability in groups[reference].abilities}

    def build(family: Family) -> RunComparison:
        measured = measurements.within(family)
        against = [
            (index, _against(groups[reference], group, ability, measured))
            for index, group in enumerate(groups)
            if index != reference
            for ability in group.abilities
            if ability.key in keys
        ]
        drops = [
            (index, drop)
            for index, group in enumerate(groups)
            if group.is_finished
            for ability in group.abilities
            if (drop := drop_of("", group, ability, measured)) is not None
        ]
        return RunComparison(
            groups=tuple(groups),
            reference=reference,
            differences=tuple(against),
            forgetting=tuple(drops),
            mismatches=tuple(mismatches),
            measured=measured,
        )

    return corrected_together(build)


def _against(
    before: RunGroup, after: RunGroup, ability: Ability, measured: Measurements
) -> Comparison:
    why_not = ""
    unfinished = [group.label for group in (before, after) if not group.is_finished]
    if unfinished:
        why_not = f"{unfinished[0]!r} has not reached its end"
    elif min(len(before.runs), len(after.runs)) == 1 != max(len(before.runs), len(after.runs)):
        why_not = "one side has a single seed"
    if why_not:
        return Comparison("", ability, before.label, after.label, None, why_not)
    return measured.compare("", ability, end_of(before), end_of(after))
