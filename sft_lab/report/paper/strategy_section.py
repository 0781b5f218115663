"""The section of a question about strategies: its table, the replay share, forgetting."""

from collections.abc import Sequence

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Drop, can_forget
from sft_lab.analysis.groups import RunGroup, distinct, groups_of
from sft_lab.analysis.measurements import end_of
from sft_lab.analysis.study_results import Question
from sft_lab.report.answers import claims_answer, search_answer, strategies_answer
from sft_lab.report.context import Context, ability_curves, figure_of, section_of
from sft_lab.report.curves import Level, Line, drop_ends, drop_panel
from sft_lab.report.page import Figure, Section
from sft_lab.report.paper.amounts import is_alone
from sft_lab.report.paper.strategies import (
    against_references,
    drops,
    references,
    table_groups,
)
from sft_lab.report.paper.strategy_claims import StrategyClaims, replay_sweeps
from sft_lab.report.tables import forgetting_table, score_table
from sft_lab.report.timelines import heat_map, timeline

REPLAY = "Replay share k"
"""Title of the figure that the first screen shows, where a study has it."""

_MARKS = (
    "With each score its 95 % interval. \N{BLACK DOWN-POINTING TRIANGLE} and "
    "\N{BLACK UP-POINTING TRIANGLE} differ from the reference of their column (bold) by a paired "
    "test, corrected over the whole report by Holm's method; \N{WHITE CIRCLE} may be chance."
)


def strategies_section(question: Question, context: Context) -> Section:
    """Return the section of a question whose arms are strategies."""
    abilities, measured = context.abilities, context.measured
    rows = table_groups(question, context.results, abilities)
    best = references(rows, abilities, measured)
    against = against_references(f"{question.name} table", rows, best, measured)
    lost = drops(f"{question.name} forgetting", distinct(groups_of(question)), abilities, measured)
    judged = StrategyClaims(question, context.results, abilities, measured, best, lost)
    claims = judged.claims()
    context.comparisons += [*against, *(drop.comparison for drop in lost), *judged.comparisons]
    tables = [
        score_table(
            "Strategies by abilities at the end of training, means over seeds. "
            + (_MARKS if best else "There is no specialist to compare with."),
            rows,
            abilities,
            measured,
            against,
            best,
            context.published,
        )
    ]
    lost = [drop for drop in lost if can_forget(drop.group, drop.comparison.ability)]
    if lost:
        tables.append(forgetting_table(lost, abilities))
    figures: list[Figure] = []
    if context.draws:
        figures = [
            *_over_time(question, context),
            *_sweep(question, context, best),
            *_drop_figure(question, context, lost),
        ]
    answer = search_answer(question, context.results.searches)
    answer = answer or f"{strategies_answer(rows, against, best)} {claims_answer(claims)}".strip()
    return section_of(question, claims=claims, tables=tables, figures=figures, answer=answer)


def _sweep(question: Question, context: Context, best: dict[Ability, RunGroup]) -> list[Figure]:
    sweeps = [sweep for sweep in replay_sweeps(question) if len(sweep.groups) > 1]
    if not sweeps:
        return []

    def lines(ability: Ability) -> list[Line]:
        found = [
            context.line(sweep.name, ability, list(sweep.groups.values()), list(sweep.groups))
            for sweep in sweeps
        ]
        return [*found, *context.paper(ability, "k")]

    def constants(ability: Ability) -> list[Level]:
        found = []
        multi = [g for g in groups_of(question) if g.arm == "multi_task"]
        for label, group in [
            ("specialist", best.get(ability)),
            *(("multi_task", g) for g in multi),
        ]:
            score = context.measured.mean(ability, end_of(group)) if group else None
            if score is not None:
                found.append(Level(label, score.value))
        return found

    return ability_curves(
        question,
        context,
        REPLAY,
        "Each panel is an ability at the end of DMT by the share k of math and code that its last "
        "stage replays. k = 0 replays nothing and is drawn one step left of the least share; "
        "straight lines are the specialist of the ability's own source and multi-task training. "
        "Dots are seeds, bands 95 % intervals over seeds and items.",
        lines,
        constants,
        "k",
        "replay share k",
    )


def _over_time(question: Question, context: Context) -> list[Figure]:
    finished = [group for group in distinct(groups_of(question)) if group.runs]
    sources = {ability.source for ability in context.abilities}
    mixed = [g for g in finished if not any(is_alone(g.arm, source) for source in sources)]
    groups = mixed or finished
    scales = list(dict.fromkeys(ability.scale for ability in context.abilities))
    lines, maps = [], []
    for number, group in enumerate(groups):
        for place, scale in enumerate(scales):
            name = f"{question.name}-time-{number}-{place}"
            lines.append(timeline(name, group, context.abilities, scale))
        maps.append(
            heat_map(f"{question.name}-map-{number}", group, context.abilities, context.measured)
        )
    return [
        *figure_of(
            "Abilities over training",
            "Each panel is a strategy. Lines are means over seeds, dots the seeds; "
            "thin dotted lines of the same colour are the share of answers in the asked form; "
            "dashed upright lines are stage boundaries, with the stages named above. Hollow points "
            "are evaluations on some of the items, which enter no mean.",
            lines,
        ),
        *figure_of(
            "Abilities at stage boundaries",
            "Rows are abilities, columns the base and the ends of the stages; a stronger colour is "
            "a higher score on the ability's own scale. Means over seeds.",
            maps,
        ),
    ]


def _drop_figure(question: Question, context: Context, lost: Sequence[Drop]) -> list[Figure]:
    ends = drop_ends(lost)
    panels = [
        drop_panel(f"{question.name}-forgetting-{ability.name}", ability, lost, ends)
        for ability in context.abilities
    ]
    return figure_of(
        "Forgetting",
        "Change of each ability from the stage end where its mean was highest to the end of "
        "training, with 95 % intervals: left of zero is forgotten. Abilities that the last stage "
        "was the first to train, and those never above guessing, have nothing to forget and are "
        "left out. Filled points are shown after Holm's correction, hollow grey ones may be "
        "chance. All panels have one scale.",
        panels,
    )
