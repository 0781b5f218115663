"""A study's results as a report."""

from collections.abc import Sequence
from dataclasses import replace

from sft_lab.analysis.abilities import Ability, abilities_of, taught
from sft_lab.analysis.family import Family, corrected_together
from sft_lab.analysis.forgetting import Changed, most_forgotten
from sft_lab.analysis.groups import groups_of, with_all_seeds
from sft_lab.analysis.measurements import MarksReader, Measurements
from sft_lab.analysis.protocols import finished_runs, protocol_warnings
from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.report.answers import counts, verdicts
from sft_lab.report.context import Context
from sft_lab.report.csv_tables import (
    boundaries_csv,
    cells_csv,
    comparisons_csv,
    findings_csv,
    items_csv,
    means_csv,
)
from sft_lab.report.departures import departures_of, summary
from sft_lab.report.page import Figure, Report, Section
from sft_lab.report.paper.strategy_section import REPLAY
from sft_lab.report.published import published_for
from sft_lab.report.section import ReportSection
from sft_lab.report.sections import (
    ForgottenItems,
    Method,
    QuestionSection,
    Representations,
    Searches,
)
from sft_lab.terminal import counted


def build_report(
    results: StudyResults,
    reader: MarksReader,
    extra_figures: Sequence[tuple[str, str, str]] = (),
    sections: Sequence[ReportSection] = (),
    changed: Changed | None = None,
) -> Report:
    """Build a study's report.

    Args:
        results: The study; the report names what is missing and does not fail.
        reader: Returns the answers of a run to a benchmark at a step, or raises a RequestError.
        extra_figures: Drawings of the representation view: title, an ``<svg>`` element, caption.
        sections: Further sections, shown before the one on methods.
        changed: Forgotten and gained items with their answers, where the reader has none; by
            default those that it returns.
    """
    abilities = abilities_of(results)
    runs = finished_runs(results)
    bases = sorted({run.base for run in runs.values()})
    measurements = Measurements(reader, margin=results.margin)
    items = changed
    if items is None:
        items = most_forgotten(list(runs.values()), abilities, measurements)
    departures = departures_of(list(runs.values()), abilities)
    pooled = with_all_seeds(results)
    parts = [
        *map(QuestionSection, pooled.questions),
        Searches(),
        ForgottenItems(),
        Representations(extra_figures),
        *sections,
        Method(),
    ]

    def build(family: Family) -> Context:
        measured = measurements.within(family)
        published = published_for(bases, departures)
        context = Context(pooled, abilities, measured, published, items, departures)
        for part in parts:
            section = part.build(context)
            if section is not None:
                context.sections.append(section)
        return context

    context = corrected_together(build)
    headline, shown = with_headline(context.sections)
    differing = [summary(departures)] if departures else []
    return Report(
        title=f"Study {results.name}",
        extent=_extent(results, bases),
        facts=_facts(results, abilities, bases),
        warnings=[*_warnings(results, pooled, abilities, bases), *differing],
        sections=shown,
        verdicts=verdicts(context.claims),
        counts=counts(context.claims),
        headline=headline,
        tables={
            "cells.csv": cells_csv(results, abilities),
            "means.csv": means_csv(pooled, abilities, context.measured),
            "boundaries.csv": boundaries_csv(results, abilities),
            "comparisons.csv": comparisons_csv(context.comparisons),
            "findings.csv": findings_csv(context.claims),
            "items.csv": items_csv(context.changed),
        },
    )


def with_headline(sections: Sequence[Section]) -> tuple[Figure | None, list[Section]]:
    """Return the figure for the first screen, and the sections without it.

    It is the replay share where a question has it, or else the first figure.
    """
    drawn = [(n, figure) for n, section in enumerate(sections) for figure in section.figures]
    replay = [found for found in drawn if found[1].title == REPLAY]
    if not drawn:
        return None, list(sections)
    number, headline = (replay or drawn)[0]
    section = sections[number]
    others = [figure for figure in section.figures if figure is not headline]
    before, after = sections[:number], sections[number + 1 :]
    return headline, [*before, replace(section, figures=others), *after]


def _extent(results: StudyResults, bases: Sequence[str]) -> str:
    """Return cells, seeds and base in a line."""
    cells = [cell for question in results.questions for cell in question.cells]
    seeds = {cell.seed for cell in cells if _is_done(cell)}
    finished = sum(map(_is_done, cells))
    number = f"{finished} of {counted(len(cells), 'cell')} finished, {counted(len(seeds), 'seed')}"
    return f"{number}, base {', '.join(bases) or 'unknown'}"


def _facts(
    results: StudyResults, abilities: Sequence[Ability], bases: Sequence[str]
) -> dict[str, str]:
    cells = [cell for question in results.questions for cell in question.cells]
    runs = finished_runs(results)
    seeds = {q.name: sorted({cell.seed for cell in q.cells}) for q in results.questions}
    alike = len({tuple(some) for some in seeds.values()}) == 1
    shown = [", ".join(map(str, some)) for some in seeds.values()]
    return {
        "Base": ", ".join(bases) or "no run has finished",
        "Questions": "; ".join(f"{q.name}, {q.title}" for q in results.questions) or "none",
        "Abilities": ", ".join(map(_ability, abilities)) or "none",
        "Seeds": shown[0]
        if alike
        else "; ".join(f"{name}: {some}" for name, some in zip(seeds, shown, strict=True)),
        "Cells": f"{len(cells)}, of which {sum(_is_done(cell) for cell in cells)} have finished",
        "Runs": f"{len(runs)} finished; equal cells of several questions share one",
    }


def _ability(ability: Ability) -> str:
    source = f", source {ability.source}" if ability.source not in (None, ability.name) else ""
    return f"{ability.name} ({ability.key}{source})"


def _is_done(cell: Cell) -> bool:
    return cell.result is not None and cell.result.last is not None


def _warnings(
    results: StudyResults,
    pooled: StudyResults,
    abilities: Sequence[Ability],
    bases: Sequence[str],
) -> list[str]:
    found = protocol_warnings(results, list(abilities))
    if len(bases) > 1:
        found.append(
            f"The runs have {len(bases)} different bases ({', '.join(bases)}); differences between "
            "cells may be differences between bases."
        )
    missing = [cell for q in results.questions for cell in q.cells if not _is_done(cell)]
    if missing:
        names = [_cell_name(cell) for cell in missing]
        more = f", and {len(names) - 12} more" if len(names) > 12 else ""
        planned = sum(len(question.cells) for question in results.questions)
        found.append(
            f"{len(missing)} of {counted(planned, 'cell')} left out of every mean, for there is no "
            "finished run (failed, stopped, or not run yet): "
            f"{'; '.join(names[:12])}{more}. cells.csv lists them all."
        )
    if not finished_runs(results):
        found.append("No run has finished: there are no results yet.")
    for ability in abilities:
        without = [
            run.name
            for run in finished_runs(results).values()
            if run.last is not None and ability.key not in run.last.scores
        ]
        if without:
            found.append(
                f"{len(without)} finished runs have no {ability.key}: {', '.join(without[:3])}"
                f"{' and more' if len(without) > 3 else ''}."
            )
    untaught = [ability.name for ability in abilities if ability not in taught(abilities)]
    if untaught:
        found.append(
            f"No source is known that teaches {', '.join(untaught)}: tables and figures show it, "
            "findings leave it out."
        )
    one = [text for question in pooled.questions if (text := _of_one_seed(question))]
    if one:
        found.append(
            f"One seed only in {', '.join(one)}: intervals and tests there speak of other items, "
            "not of other seeds."
        )
    return found


def _of_one_seed(question: Question) -> str:
    """Return the question's name where one seed has finished, with the groups if not in all."""
    finished = [group for group in groups_of(question) if group.runs]
    one = [group.label for group in finished if len(group.runs) == 1]
    if not one:
        return ""
    some = f" ({', '.join(one)})" if len(one) < len(finished) else ""
    return question.name + some


def _cell_name(cell: Cell) -> str:
    axis = "".join(f" {name} = {value}" for name, value in cell.axis.items())
    return f"{cell.question} {cell.arm}{axis} seed {cell.seed}"
