"""The section of each question of a study, by its design."""

from collections.abc import Callable
from dataclasses import replace

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import groups_of, series_of
from sft_lab.analysis.study_results import Question
from sft_lab.report.answers import extremes, extremes_answer
from sft_lab.report.context import BANDS, Context, ability_curves, section_of
from sft_lab.report.curves import Line
from sft_lab.report.page import Figure, Section
from sft_lab.report.paper.amounts import mixed_claims, own_series, single_claims, single_question
from sft_lab.report.paper.ratios import ratio_claims
from sft_lab.report.paper.strategy_section import strategies_section
from sft_lab.report.tables import comparison_table, score_table


def question_section(question: Question, context: Context) -> Section:
    """Return the section of a question."""
    makers: dict[str, Callable[[Question, Context], Section]] = {
        "single": _single,
        "mixed": _mixed,
        "ratio": _ratio,
        "strategies": strategies_section,
    }
    section = makers.get(question.design, _grid)(question, context)
    if any(group.runs for group in groups_of(question)):
        return section
    nothing = "None of its runs has finished."
    return Section(section.name, section.title, text=[nothing], answer=nothing)


def _single(question: Question, context: Context) -> Section:
    claims, comparisons = single_claims(
        question, context.results, context.abilities, context.measured
    )
    context.comparisons += comparisons
    series = series_of(question).values()

    def lines(ability: Ability) -> list[Line]:
        found = [
            context.line(groups[0].named(f"{groups[0].arm} alone"), ability, groups)
            for groups in series
        ]
        return [*found, *context.paper(ability, "single")]

    figure = ability_curves(
        question,
        context,
        "Ability by amount, one source alone",
        f"Each panel is an ability, each line a source trained alone. {BANDS}",
        lines,
    )
    table = comparison_table(
        "Least against most data, then step by step: paired on the same items, corrected over the "
        "whole report by Holm's method.",
        comparisons,
    )
    return section_of(question, claims=claims, tables=[table], figures=figure)


def _mixed(question: Question, context: Context) -> Section:
    single = single_question(context.results)
    claims, comparisons = mixed_claims(
        question, context.results, context.abilities, context.measured
    )
    context.comparisons += comparisons
    # A later mix, such as one of filtered rows, is drawn beside the plain one.
    before = context.results.questions[: context.results.questions.index(question)]
    others = [earlier for earlier in before if earlier.design == "mixed"]

    def lines(ability: Ability) -> list[Line]:
        found = [
            context.line(groups[0].named(f"{ability.source} alone"), ability, groups)
            for groups in own_series(single, ability)
        ]
        for q in [question, *others]:
            found += [context.line(arm, ability, groups) for arm, groups in series_of(q).items()]
        return [*found, *context.paper(ability, "mixed")]

    figure = ability_curves(
        question,
        context,
        "Alone against mixed",
        "Each panel is an ability: its own source alone, and all sources mixed, each at the same "
        f"fraction. {BANDS}",
        lines,
    )
    table = comparison_table(
        "Mixed against alone at equal amounts of the ability's own source: paired on the same "
        "items, corrected over the whole report by Holm's method.",
        comparisons,
    )
    return section_of(question, claims=claims, tables=[table], figures=figure)


def _ratio(question: Question, context: Context) -> Section:
    claims, comparisons = ratio_claims(
        question, context.results, context.abilities, context.measured
    )
    context.comparisons += comparisons
    series = series_of(question)

    def lines(ability: Ability) -> list[Line]:
        found = [context.line(name, ability, groups) for name, groups in series.items()]
        for arm in dict.fromkeys(groups[0].arm for groups in series.values()):
            published = context.paper(ability, "ratio", arm.removeprefix("vary_"))
            found += [replace(line, label=f"{line.label}, {arm}") for line in published]
        return found

    figure = ability_curves(
        question,
        context,
        "Ability by the varied fraction",
        "Each panel is an ability, each line a design: which sources are varied while the others "
        f"stay as they are. A flat line means that what is varied matters little. {BANDS}",
        lines,
    )
    finished = [[g.level for g in groups if g.runs] for groups in series.values()]
    greatest = ", ".join(dict.fromkeys(levels[-1] for levels in finished if levels))
    table = comparison_table(
        f"Each fraction against the greatest one with finished runs ({greatest}): paired on the "
        "same items, corrected over the whole report by Holm's method.",
        comparisons,
    )
    return section_of(question, claims=claims, tables=[table], figures=figure)


def _grid(question: Question, context: Context) -> Section:
    series = series_of(question)
    rows = [group for groups in series.values() for group in groups]
    table = score_table(
        "Means over seeds, with 95 % intervals.", rows, context.abilities, context.measured
    )
    figures: list[Figure] = []
    if any(group.axis for group in rows):

        def lines(ability: Ability) -> list[Line]:
            return [
                context.line(name, ability, groups)
                for name, groups in series.items()
                if groups[0].axis
            ]

        figures = ability_curves(
            question,
            context,
            "Ability by the first axis",
            f"Each panel is an ability. {BANDS}",
            lines,
        )
    range_of_each = extremes(f"{question.name} range", rows, context.abilities, context.measured)
    context.comparisons += range_of_each
    return section_of(
        question, tables=[table], figures=figures, answer=extremes_answer(range_of_each)
    )
