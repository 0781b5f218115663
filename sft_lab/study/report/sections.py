"""One section of a report for each question, by its design."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sft_lab.metrics.score import Score
from sft_lab.study.report.abilities import Ability
from sft_lab.study.report.amounts import (
    arms_of,
    mixed_claims,
    own_arm,
    single_claims,
    single_question,
)
from sft_lab.study.report.comparing import Comparison, Measurements, end_of
from sft_lab.study.report.curves import Level, Line, curve, top_of
from sft_lab.study.report.drop_plots import drop_panel
from sft_lab.study.report.groups import Group, distinct, groups_of
from sft_lab.study.report.page import Claim, Figure, Panel, Section, Table
from sft_lab.study.report.published import SOURCE, Published
from sft_lab.study.report.ratios import ratio_claims
from sft_lab.study.report.strategies import (
    Drop,
    against_references,
    drops,
    references,
    replay_sweep,
    specialist_arms,
    strategy_claims,
    table_groups,
)
from sft_lab.study.report.tables import comparison_table, forgetting_table, score_table
from sft_lab.study.report.timelines import heat_map, timeline
from sft_lab.study.study_results import Question, StudyResults

_BANDS = "Bands are 95 % intervals over seeds and items; the amounts stand on a logarithmic axis."
_MARKS = (
    "In brackets below each score its 95 % interval. \N{BLACK DOWN-POINTING TRIANGLE} and "
    "\N{BLACK UP-POINTING TRIANGLE} differ from the reference of their column (bold) by a paired "
    "test, corrected over the whole table by Holm's method; \N{WHITE CIRCLE} may be chance."
)


@dataclass
class Context:
    """What all sections are made from, and the comparisons that they have made.

    Attributes:
        results: The study.
        abilities: Its abilities.
        measured: Means and comparisons.
        published: The paper's scores, or None.
        comparisons: Every comparison so far.
    """

    results: StudyResults
    abilities: Sequence[Ability]
    measured: Measurements
    published: Published | None
    comparisons: list[Comparison] = field(default_factory=list)

    def line(self, label: str, ability: Ability, groups: Sequence[Group]) -> Line:
        """Return the line of groups that have been measured."""
        scores = [(g.level, self.measured.mean(ability, end_of(g))) for g in groups]
        told = [(level, score) for level, score in scores if score is not None]
        return Line(label, [level for level, _ in told], [score for _, score in told])

    def paper(self, ability: Ability, *names: str) -> list[Line]:
        """Return the paper's line of a sweep, where it is shown and there is one."""
        line = self.published.line(ability, *names) if self.published else None
        return [line] if line else []


def question_section(question: Question, context: Context) -> Section:
    """Return the section of a question."""
    makers: dict[str, Callable[[Question, Context], Section]] = {
        "single": _single,
        "mixed": _mixed,
        "ratio": _ratio,
        "strategies": _strategies,
    }
    section = makers.get(question.design, _grid)(question, context)
    if any(group.runs for group in groups_of(question)):
        return section
    return Section(section.name, section.title, ["None of its runs has finished."])


def _single(question: Question, context: Context) -> Section:
    claims, comparisons = single_claims(question, context.abilities, context.measured)
    context.comparisons += comparisons
    arms = arms_of(question)

    def lines(ability: Ability) -> list[Line]:
        found = [context.line(f"{arm} alone", ability, groups) for arm, groups in arms.items()]
        return [*found, *context.paper(ability, "single")]

    figure = _curves(
        question,
        context,
        "Ability by amount, one source alone",
        f"Each panel is an ability, each line a source trained alone. {_BANDS}",
        lines,
    )
    table = comparison_table(
        "Least against most data, then step by step: paired on the same items, corrected over this "
        "table by Holm's method.",
        comparisons,
    )
    return _section(question, claims=claims, tables=[table], figures=figure)


def _mixed(question: Question, context: Context) -> Section:
    single = single_question(context.results)
    claims, comparisons = mixed_claims(question, single, context.abilities, context.measured)
    context.comparisons += comparisons
    # A later mix, such as one of filtered rows, is drawn beside the plain one.
    before = context.results.questions[: context.results.questions.index(question)]
    others = [earlier for earlier in before if earlier.design == "mixed"]

    def lines(ability: Ability) -> list[Line]:
        found = (
            [context.line(f"{ability.name} alone", ability, own_arm(single, ability))]
            if single
            else []
        )
        for q in [question, *others]:
            found += [context.line(arm, ability, groups) for arm, groups in arms_of(q).items()]
        return [*found, *context.paper(ability, "mixed")]

    figure = _curves(
        question,
        context,
        "Alone against mixed",
        "Each panel is an ability: its own source alone, and all sources mixed, each at the same "
        f"fraction. {_BANDS}",
        lines,
    )
    table = comparison_table(
        "Mixed against alone at equal amounts of the ability's own source: paired on the same "
        "items, corrected over this table by Holm's method.",
        comparisons,
    )
    return _section(question, claims=claims, tables=[table], figures=figure)


def _ratio(question: Question, context: Context) -> Section:
    claims, comparisons = ratio_claims(question, context.abilities, context.measured)
    context.comparisons += comparisons
    arms = arms_of(question)

    def lines(ability: Ability) -> list[Line]:
        found = [context.line(arm, ability, groups) for arm, groups in arms.items()]
        for arm in arms:
            published = context.paper(ability, "ratio", arm.removeprefix("vary_"))
            found += [
                Line(f"{line.label}, {arm}", line.levels, line.scores, True) for line in published
            ]
        return found

    figure = _curves(
        question,
        context,
        "Ability by the varied fraction",
        "Each panel is an ability, each line a design: which sources are varied while the others "
        f"stay as they are. A flat line means that what is varied matters little. {_BANDS}",
        lines,
    )
    table = comparison_table(
        "Each fraction against all of what is varied: paired on the same items, corrected over "
        "this table by Holm's method.",
        comparisons,
    )
    return _section(question, claims=claims, tables=[table], figures=figure)


def _strategies(question: Question, context: Context) -> Section:
    abilities, measured = context.abilities, context.measured
    rows = table_groups(question, context.results, abilities)
    best = references(rows, abilities, measured)
    against = against_references(f"{question.name} table", rows, best, measured)
    lost = drops(f"{question.name} forgetting", distinct(groups_of(question)), abilities, measured)
    claims, replay = strategy_claims(question, abilities, measured, against, lost)
    context.comparisons += [*against, *(drop.comparison for drop in lost), *replay]
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
    if lost:
        tables.append(forgetting_table(lost, abilities))
    figures = [
        *_sweep(question, context, best),
        *_over_time(question, context),
        *_drop_figure(question, context, lost),
    ]
    return _section(question, claims=claims, tables=tables, figures=figures)


def _grid(question: Question, context: Context) -> Section:
    groups = groups_of(question)
    rows = [g for arm in arms_of(question).values() for g in arm]
    table = score_table(
        "Means over seeds, with 95 % intervals.", rows, context.abilities, context.measured
    )
    figures: list[Figure] = []
    if any(group.axis for group in groups):

        def lines(ability: Ability) -> list[Line]:
            found: dict[str, list[Group]] = {}
            for group in rows:
                others = [f"{name} = {value}" for name, value in list(group.axis.items())[1:]]
                if group.axis:
                    found.setdefault(", ".join([group.arm, *others]), []).append(group)
            return [context.line(label, ability, some) for label, some in found.items()]

        figures = _curves(
            question,
            context,
            "Ability by the first axis",
            f"Each panel is an ability. {_BANDS}",
            lines,
        )
    return _section(question, tables=[table], figures=figures)


def _curves(
    question: Question,
    context: Context,
    title: str,
    caption: str,
    lines: Callable[[Ability], Sequence[Line]],
    levels: Callable[[Ability], Sequence[Level]] = lambda ability: (),
    name: str = "curve",
    axis: str | None = None,
) -> list[Figure]:
    groups = [group for group in groups_of(question) if group.axis]
    axis = axis or (next(iter(groups[0].axis)) if groups else "amount")
    of = {ability: lines(ability) for ability in context.abilities}
    shares = [a for a in context.abilities if a.is_share]
    tops = {a: top_of(a, _scores(of[a])) for a in context.abilities}
    common = max((tops[a] for a in shares), default=1.0)
    panels = [
        curve(
            f"{question.name}-{name}-{ability.name}",
            ability.name,
            ability,
            axis,
            of[ability],
            levels(ability),
            common if ability.is_share else tops[ability],
        )
        for ability in context.abilities
    ]
    if any(line.published for some in of.values() for line in some):
        caption += f" Grey crosses are the scores of the same design in the paper ({SOURCE})."
    return _figure(title, caption, panels)


def _scores(lines: Sequence[Line]) -> list[Score]:
    return [score for line in lines for score in line.scores]


def _sweep(question: Question, context: Context, best: dict[Ability, Group]) -> list[Figure]:
    sweep = replay_sweep(question)
    if len(sweep) < 2:
        return []
    levels = [group.axis.get("k", "0") for group in sweep]

    def lines(ability: Ability) -> list[Line]:
        scores = [context.measured.mean(ability, end_of(group)) for group in sweep]
        told = [(k, s) for k, s in zip(levels, scores, strict=True) if s is not None]
        line = Line("dmt", [k for k, _ in told], [s for _, s in told])
        return [line, *context.paper(ability, "k")]

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

    return _curves(
        question,
        context,
        "Replay share k",
        "Each panel is an ability at the end of DMT by the share k of math and code that its last "
        "stage replays. k = 0 replays nothing and stands one step left of the least share; "
        "straight lines are the best specialist and multi-task training. "
        "Bands are 95 % intervals over seeds and items.",
        lines,
        constants,
        "k",
        "replay share k",
    )


def _over_time(question: Question, context: Context) -> list[Figure]:
    names = specialist_arms(context.abilities)
    finished = [group for group in distinct(groups_of(question)) if group.runs]
    groups = [group for group in finished if group.arm not in names] or finished
    scales = list(dict.fromkeys(ability.scale for ability in context.abilities))
    curves, maps = [], []
    for number, group in enumerate(groups):
        for place, scale in enumerate(scales):
            name = f"{question.name}-time-{number}-{place}"
            curves.append(timeline(name, group, context.abilities, scale))
        maps.append(
            heat_map(f"{question.name}-map-{number}", group, context.abilities, context.measured)
        )
    return [
        *_figure(
            "Abilities over training",
            "Each panel is a strategy. Strong lines are means over seeds, faint ones the seeds; "
            "dashed upright lines are stage boundaries, with the stages named above.",
            curves,
        ),
        *_figure(
            "Abilities at stage boundaries",
            "Rows are abilities, columns the base and the ends of the stages; a stronger colour is "
            "a higher score on the ability's own scale. Means over seeds.",
            maps,
        ),
    ]


def _drop_figure(question: Question, context: Context, lost: Sequence[Drop]) -> list[Figure]:
    panels = [
        drop_panel(f"{question.name}-forgetting-{ability.name}", ability, lost)
        for ability in context.abilities
    ]
    return _figure(
        "Forgetting",
        "Change of each ability from the stage end where it stood highest to the end of training, "
        "with 95 % intervals: left of zero is forgotten. Filled points are shown after Holm's "
        "correction, hollow grey ones may be chance.",
        panels,
    )


def _figure(title: str, caption: str, panels: Sequence[Panel | None]) -> list[Figure]:
    found = [panel for panel in panels if panel is not None]
    return [Figure(title, caption, found)] if found else []


def _section(
    question: Question,
    claims: Sequence[Claim] = (),
    tables: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
) -> Section:
    title = f"{question.name}: {question.title}"
    return Section(question.name, title, (), claims, [t for t in tables if t.rows], list(figures))
