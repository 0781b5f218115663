"""RQ4: the rows of the strategies' table, their specialists, and each strategy's losses."""

from collections.abc import Iterable, Sequence

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Drop, drop_of
from sft_lab.analysis.groups import RunGroup, by_amount, controls_of, distinct, groups_of
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.paper.amounts import is_alone, own_series, single_question


def table_groups(
    question: Question, results: StudyResults, abilities: Sequence[Ability]
) -> list[RunGroup]:
    """Return the rows of the strategies' table: specialists first, then strategies.

    Specialists are the question's own arms of one source, or else those of the single-source
    question at their greatest amount.
    """
    single = single_question(results)
    specialists: list[RunGroup] = []
    for ability in abilities:
        series = own_series(question, ability) or own_series(single, ability)
        specialists += [groups[-1] for groups in series if groups[-1] not in specialists]
    others = [group for group in groups_of(question) if group not in specialists]
    rows = [*specialists, *distinct(_ordered(others))]
    return [row for group in rows for row in (group, *controls_of(results, group))]


def references(
    rows: Sequence[RunGroup], abilities: Sequence[Ability], measured: Measurements
) -> dict[Ability, RunGroup]:
    """Return the specialist of each ability that has one: the group of its own source alone.

    Another source's specialist does not count, however well it does. Of several, the best is taken.
    """
    found: dict[Ability, RunGroup] = {}
    for ability in abilities:
        scores = [
            (score.value, row)
            for row in rows
            if is_alone(row.arm, ability.source)
            and not row.control
            and (score := measured.mean(ability, end_of(row))) is not None
        ]
        if scores:
            _, found[ability] = max(scores, key=lambda scored: scored[0])
    return found


def against_references(
    place: str,
    rows: Sequence[RunGroup],
    best: dict[Ability, RunGroup],
    measured: Measurements,
) -> list[Comparison]:
    """Compare every row with the specialist of each column."""
    return [
        measured.compare(place, ability, end_of(reference), end_of(row))
        for ability, reference in best.items()
        for row in rows
        if row is not reference and row.runs
    ]


def drops(
    place: str, groups: Iterable[RunGroup], abilities: Sequence[Ability], measured: Measurements
) -> list[Drop]:
    """Return the drop of each ability in each group of several stages."""
    return [
        drop
        for group in groups
        if group.runs and min(len(run.stages) for run in group.runs.values()) > 1
        for ability in abilities
        if (drop := drop_of(place, group, ability, measured)) is not None
    ]


def _ordered(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return groups in the order of their arms, each arm from its least amount on."""
    arms = dict.fromkeys(group.arm for group in groups)
    return [g for arm in arms for g in by_amount([g for g in groups if g.arm == arm])]
