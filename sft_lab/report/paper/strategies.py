"""RQ4: the rows of the strategies' table, their specialists, and what each strategy lost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import Group, by_amount, distinct, groups_of
from sft_lab.analysis.measurements import (
    Comparison,
    Measurements,
    Side,
    boundary_of,
    corrected,
    end_of,
)
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.paper.amounts import is_alone, own_series, single_question


@dataclass(frozen=True)
class Drop:
    """What a group has lost of an ability since the stage end at which it stood highest.

    Attributes:
        group: The group.
        best: The evaluation where the mean stood highest, before the end.
        comparison: From there to the end.
    """

    group: Group
    best: Side
    comparison: Comparison


def table_groups(
    question: Question, results: StudyResults, abilities: Sequence[Ability]
) -> list[Group]:
    """Return the rows of the strategies' table: specialists first, then strategies.

    Specialists are the question's own arms of one source, or else those of the single-source
    question at their greatest amount.
    """
    single = single_question(results)
    specialists: list[Group] = []
    for ability in abilities:
        series = own_series(question, ability) or own_series(single, ability)
        specialists += [groups[-1] for groups in series if groups[-1] not in specialists]
    others = [group for group in groups_of(question) if group not in specialists]
    return [*specialists, *distinct(_ordered(others))]


def references(
    rows: Sequence[Group], abilities: Sequence[Ability], measured: Measurements
) -> dict[Ability, Group]:
    """Return the specialist of each ability that has one: what trains its own source alone.

    Another source's specialist is none, however well it does. Of several the best is taken.
    """
    found: dict[Ability, Group] = {}
    for ability in abilities:
        scores = [
            (score.value, row)
            for row in rows
            if is_alone(row.arm, ability.source)
            and (score := measured.mean(ability, end_of(row))) is not None
        ]
        if scores:
            _, found[ability] = max(scores, key=lambda scored: scored[0])
    return found


def against_references(
    family: str,
    rows: Sequence[Group],
    best: dict[Ability, Group],
    measured: Measurements,
) -> list[Comparison]:
    """Compare every row with the specialist of each column."""
    return corrected(
        measured.compare(family, ability, end_of(reference), end_of(row))
        for ability, reference in best.items()
        for row in rows
        if row is not reference and row.runs
    )


def drops(
    family: str, groups: Iterable[Group], abilities: Sequence[Ability], measured: Measurements
) -> list[Drop]:
    """Return what each group of several stages has lost of each ability.

    The earlier evaluation is the stage end, or the base, at which the mean over seeds stood
    highest. Chosen by its score, it is higher by chance alone: p is corrected for the choice.
    """
    found: list[tuple[Group, Side, Comparison]] = []
    for group in groups:
        if not group.runs or min(len(run.stages) for run in group.runs.values()) < 2:
            continue
        stages = min(len(run.stages) for run in group.runs.values())
        for ability in abilities:
            sides = [boundary_of(group, index) for index in range(stages)]
            means = [(measured.mean(ability, side), side) for side in sides]
            told = [(score.value, side) for score, side in means if score is not None]
            if told:
                _, best = max(told, key=lambda pair: pair[0])
                end = end_of(group)
                comparison = measured.compare(family, ability, best, end, same_runs=True)
                found.append((group, best, comparison.chosen_from(len(told))))
    comparisons = corrected(comparison for *_, comparison in found)
    return [
        Drop(group, best, comparison)
        for (group, best, _), comparison in zip(found, comparisons, strict=True)
    ]


def _ordered(groups: Sequence[Group]) -> list[Group]:
    """Return groups in the order of their arms, each arm from its least amount on."""
    arms = dict.fromkeys(group.arm for group in groups)
    return [g for arm in arms for g in by_amount([g for g in groups if g.arm == arm])]
