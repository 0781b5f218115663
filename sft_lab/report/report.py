"""A study's results as a report."""

from collections.abc import Sequence

from sft_lab.analysis.abilities import Ability, abilities_of, taught
from sft_lab.analysis.groups import groups_of
from sft_lab.analysis.measurements import MarksReader, Measurements
from sft_lab.analysis.protocols import finished_runs, protocol_warnings
from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.report.changed_items import changed_tables, most_forgotten
from sft_lab.report.csv_tables import (
    boundaries_csv,
    cells_csv,
    comparisons_csv,
    findings_csv,
    items_csv,
    means_csv,
)
from sft_lab.report.judging import small_text
from sft_lab.report.page import Figure, Panel, Report, Section, Table
from sft_lab.report.paper.published import published_for
from sft_lab.report.sections import Context, question_section, searches_section
from sft_lab.report.tables import protocol_table


def build_report(
    results: StudyResults,
    marks: MarksReader,
    extra_figures: Sequence[tuple[str, str, str]] = (),
) -> Report:
    """Make a study's report.

    Args:
        results: The study; what it lacks is said in the report, and nothing fails for it.
        marks: Returns the answers of a run to a benchmark at a step, or raises a RequestError.
        extra_figures: Drawings of the representation view: title, an ``<svg>`` element, caption.
    """
    abilities = abilities_of(results)
    bases = sorted({run.base for run in finished_runs(results).values()})
    measured = Measurements(marks)
    context = Context(results, abilities, measured, published_for(bases))
    questions = [question_section(question, context) for question in results.questions]
    changed = most_forgotten(list(finished_runs(results).values()), abilities, measured)
    claims = [claim for section in questions for claim in section.claims]
    sections = [_summary(questions), *questions]
    if results.searches:
        sections.append(searches_section(results.searches))
    if changed:
        sections.append(
            Section(
                "items",
                "Forgotten and gained items",
                ["All of them, in full, are in items.csv."],
                tables=changed_tables(changed),
            )
        )
    if extra_figures:
        sections.append(_extra(extra_figures))
    sections.append(_method(results, abilities))
    return Report(
        title=f"Study {results.name}",
        facts=_facts(results, abilities, bases),
        warnings=_warnings(results, abilities, bases),
        sections=sections,
        tables={
            "cells.csv": cells_csv(results, abilities),
            "means.csv": means_csv(results, abilities, measured),
            "boundaries.csv": boundaries_csv(results, abilities),
            "comparisons.csv": comparisons_csv(context.comparisons),
            "findings.csv": findings_csv(claims),
            "items.csv": items_csv(changed),
        },
    )


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
    results: StudyResults, abilities: Sequence[Ability], bases: Sequence[str]
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
        found.append(
            f"{len(missing)} of {sum(len(q.cells) for q in results.questions)} cells have no "
            "finished run (failed, stopped, or not run yet) and are left out of every mean: "
            f"{'; '.join(names[:12])}{more}. cells.csv lists them all."
        )
    if not finished_runs(results):
        found.append("No run has finished: there is nothing to be said yet.")
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
    one = [text for question in results.questions if (text := _of_one_seed(question))]
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


def _summary(questions: Sequence[Section]) -> Section:
    rows = [
        [claim.question, claim.text, finding.ability, finding.judgement]
        for section in questions
        for claim in section.claims
        for finding in claim.findings
    ]
    merged: dict[tuple[str, str], dict[str, list[str]]] = {}
    for question, text, ability, judgement in rows:
        merged.setdefault((question, text), {}).setdefault(judgement, []).append(ability)
    columns = ("holds here", "does not hold here", "cannot be told")
    table = Table(
        "The paper's findings and whether they hold in this study, ability by ability; the "
        "sentences with their figures stand under each question.",
        ("finding of the paper", "question", *columns),
        [
            [text, question, *(", ".join(dict.fromkeys(by.get(name, []))) for name in columns)]
            for (question, text), by in merged.items()
        ],
    )
    return Section(
        "findings",
        "Which of the paper's findings hold here",
        [small_text()],
        tables=[table] if merged else [],
    )


def _extra(extra: Sequence[tuple[str, str, str]]) -> Section:
    figures = [
        Figure(title, caption, [Panel(f"representation-{number}", svg, title)])
        for number, (title, svg, caption) in enumerate(extra)
    ]
    return Section("representations", "Hidden states before and after", figures=figures)


def _method(results: StudyResults, abilities: Sequence[Ability]) -> Section:
    text = [
        "Scores are means over seeds and items. Their intervals take both as drawn at random; of "
        "one seed they cover items only, by Wilson's method or a bootstrap.",
        "Differences are tested on the same items: over several seeds by Student's t with crossed "
        "random effects of seeds and items, seed by seed where both sides are the same runs at two "
        "times; of one seed by McNemar's exact test, or a paired bootstrap of ratings. Intervals "
        "of differences are at 95 % each; p values are corrected by Holm's method over all "
        "comparisons of one table, and a difference is called shown where the corrected p is "
        "below 0.05.",
        "Ratings of MT-Bench stay on their scale of 1 to 10 and are never averaged with shares.",
    ]
    table = protocol_table(results, list(abilities))
    return Section(
        "method", "How it was measured and tested", text, tables=[table] if table.rows else []
    )
