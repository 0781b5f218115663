"""The tables of a report, for reading."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Drop, change_of, form_of
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.protocols import finished_runs, protocol_id
from sft_lab.analysis.study_results import StudyResults
from sft_lab.metrics.seeds import SeedScore
from sft_lab.report.judging import interval_text, p_text
from sft_lab.report.page import Mark, Table, TableCell
from sft_lab.report.published import Published


def score_table(
    caption: str,
    rows: Sequence[RunGroup],
    abilities: Sequence[Ability],
    measured: Measurements,
    comparisons: Sequence[Comparison] = (),
    best: Mapping[Ability, RunGroup] | None = None,
    published: Published | None = None,
) -> Table:
    """Return the scores of groups, marked if they differ from a reference.

    Args:
        caption: Its caption.
        rows: Its rows.
        abilities: Its columns.
        measured: Means and comparisons.
        comparisons: Each row against the reference of its column.
        best: The references.
        published: The paper's scores, which get columns of their own.
    """
    marks = {(c.after, c.ability): c for c in comparisons if c.difference is not None}
    formed = [a for a in abilities if any(_form(group, a) for group in rows)]
    header = ["arm", "seeds"]
    for ability in abilities:
        header.append(f"{ability.name}: {ability.key},\N{NO-BREAK SPACE}{ability.unit}")
        if ability in formed:
            header.append(f"{ability.name}: in the asked form, %")
        if published is not None:
            header.append(f"{ability.name}, {published.label}")
    body: list[list[TableCell | str]] = []
    for group in rows:
        cells: list[TableCell | str] = [group.label, str(len(group.runs))]
        for ability in abilities:
            is_best = best is not None and best.get(ability) is group
            cells.append(
                _score_cell(group, ability, measured, marks.get((group.label, ability)), is_best)
            )
            if ability in formed:
                form = _form(group, ability)
                cells.append(f"{100 * form.value:.1f}" if form else "\N{EN DASH}")
            if published is not None:
                cells.append(published.strategy(ability, group.arm, group.axis.get("k", "")))
        body.append(cells)
    return Table(f"{caption} {published.source}" if published else caption, header, body)


def _form(group: RunGroup, ability: Ability) -> SeedScore | None:
    return form_of(end_of(group), ability)


def _score_cell(
    group: RunGroup,
    ability: Ability,
    measured: Measurements,
    comparison: Comparison | None,
    is_best: bool,
) -> TableCell:
    score = measured.mean(ability, end_of(group))
    if score is None:
        alike = not end_of(group).having(ability).points
        return TableCell("\N{EN DASH}", "" if alike else "seeds measured differently")
    note = f"{ability.text(score.low)} to {ability.text(score.high)}"
    text = ability.text(score.value)
    if is_best:
        return TableCell(text, note, "best")
    if comparison is None or comparison.difference is None:
        return TableCell(text, note)
    return TableCell(text, note, _mark(comparison))


def _mark(comparison: Comparison) -> Mark:
    difference = comparison.difference
    if difference is None:
        return ""
    return "unclear" if not comparison.shown else "more" if difference.value > 0 else "less"


def _change_cell(comparison: Comparison) -> TableCell:
    difference, ability = comparison.difference, comparison.ability
    if difference is None:
        return TableCell("\N{EN DASH}", f"not compared: {comparison.why_not}")
    note = interval_text(ability, difference.low, difference.high)
    return TableCell(ability.change(difference.value), note, _mark(comparison))


def comparison_table(caption: str, comparisons: Sequence[Comparison]) -> Table:
    """Return comparisons with their differences, intervals and corrected p."""
    rows: list[list[TableCell | str]] = []
    for c in dict.fromkeys(comparisons):
        first = [c.span, c.ability.name]
        if c.difference is None:
            rows.append([*first, f"not compared: {c.why_not}", "", ""])
            continue
        d = c.difference
        rows.append([*first, _change_cell(c), TableCell(p_text(c.p_holm), d.test), f"{d.n}"])
    return Table(
        caption, ("from, to", "ability", "difference", "corrected p", "items"), rows, folded=True
    )


def forgetting_table(drops: Sequence[Drop], abilities: Sequence[Ability]) -> Table:
    """Return what each group lost of each ability since its best stage end, and its retention."""
    formed = {
        drop.comparison.ability
        for drop in drops
        if change_of(drop.group, drop.comparison.ability, "form_forgetting")
    }
    header = ["arm"]
    for ability in abilities:
        change = "change, points" if ability.is_share else f"change, {ability.unit}"
        header += [f"{ability.name}: {change}", f"{ability.name}: retention"]
        if ability in formed:
            header.append(f"{ability.name}: forgetting with form, points")
    by: dict[str, dict[Ability, Drop]] = {}
    for drop in drops:
        by.setdefault(drop.group.label, {})[drop.comparison.ability] = drop
    rows: list[list[TableCell | str]] = []
    for label, lost in by.items():
        row: list[TableCell | str] = [label]
        for ability in abilities:
            found = lost.get(ability)
            row += [_drop_cell(found), _retention(found.group, ability)] if found else ["", ""]
            if ability in formed:
                row.append(_form_forgetting(found.group, ability) if found else "")
        rows.append(row)
    return Table(
        "Change from the stage end where the mean was highest (named below it) to the end of "
        "training, run by run, with its 95 % interval. That stage end is chosen after the fact, "
        "which makes the change look a little worse than it is; its p is therefore multiplied by "
        "the number of stage ends it was chosen from, the base among them, before Holm's "
        "correction. Retention is each run's score at the end over its own best at an earlier "
        "stage end: the mean over seeds with Student's interval. Forgetting with form is the mean "
        "over seeds of what the strict score lost, which also asks for the form of the answer, 0 "
        "for a seed that gained. What it exceeds the same in any form by, below it, was lost of "
        "the form and not of the ability.",
        header,
        rows,
    )


def _drop_cell(drop: Drop) -> TableCell:
    cell = _change_cell(drop.comparison)
    return replace(cell, note=f"{cell.note}\nafter {drop.best.stage}")


def _form_forgetting(group: RunGroup, ability: Ability) -> TableCell:
    found = change_of(group, ability, "form_forgetting")
    alone = change_of(group, ability, "forgetting")
    note = f"{100 * alone.value:.1f} in any form" if found and alone else ""
    return TableCell(f"{100 * found.value:.1f}" if found else "\N{EN DASH}", note)


def _retention(group: RunGroup, ability: Ability) -> TableCell:
    found = change_of(group, ability, "retention")
    if found is None:
        return TableCell("\N{EN DASH}")
    if found.low is None or found.high is None:
        return TableCell(f"{found.value:.2f}", "one seed")
    interval = f"{found.low:z.2f} to {found.high:z.2f}".replace("-", "\N{MINUS SIGN}")
    return TableCell(f"{found.value:.2f}", interval)


def protocol_table(results: StudyResults, abilities: list[Ability]) -> Table:
    """Return the protocols under which a study was measured."""
    rows: dict[tuple[str, ...], int] = {}
    for run in finished_runs(results).values():
        for ability in abilities:
            measured = run.benchmarks.get(ability.benchmark)
            if measured is not None:
                row = (
                    ability.key,
                    protocol_id(run, ability.benchmark),
                    measured.digest[:8],
                    measured.prompts[:8],
                    f"{measured.reported} of {measured.items}",
                    _decoding(measured.decoding),
                    _agreement(ability, measured.agrees_with),
                )
                rows[row] = rows.get(row, 0) + 1
    return Table(
        "How the scores were measured. Scores compare if the protocol is the same: a digest of "
        "items and extractor, of the rendered prompts, and of the decoding. A score that "
        "agrees with a published protocol grades the same answers as that does; where the score "
        "shown is the lab's own, the official one is logged beside it.",
        (
            "score",
            "protocol",
            "items and extractor",
            "prompts",
            "report items",
            "decoding",
            "agrees with",
            "runs",
        ),
        [[*row, str(runs)] for row, runs in sorted(rows.items())],
    )


def _agreement(ability: Ability, agrees_with: Mapping[str, str]) -> str:
    """Return the published protocol of an ability's score, or its benchmark's official score."""
    if ability.score_name in agrees_with:
        return agrees_with[ability.score_name]
    others = (f"{ability.benchmark}/{name}: {text}" for name, text in agrees_with.items())
    return "; ".join(["the lab's own", *others])


def _decoding(decoding: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in decoding.items() if value not in (None, [], ())}
    texts = {
        name: " and ".join(f"{part} in {kind}" for kind, part in value.items())
        if isinstance(value, Mapping)
        else value
        for name, value in shown.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
