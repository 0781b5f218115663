"""Everything that a report shows as plain data, for CSV files; scores in their own unit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Changed, changes_of, form_at
from sft_lab.analysis.groups import groups_of
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.protocols import protocol_id
from sft_lab.analysis.study_results import Cell, StudyResults
from sft_lab.report.page import Claim, PlainTable

Row = Mapping[str, object]

_PLACE = ["question", "arm", "control", "axis", "seed", "run_id"]
_SCORE = ["ability", "metric", "score", "low", "high"]


def cells_csv(results: StudyResults, abilities: Sequence[Ability]) -> PlainTable:
    """Return every cell with its scores at the end of training, also cells without a run."""
    columns = [*_PLACE, "run", "status", "base", *_SCORE, "n", "protocol", *_DERIVED]
    return PlainTable(columns, list(_cells(results, abilities)))


_CHANGES = ["forgetting", "form_forgetting", "retention", "backward_transfer"]
_DERIVED = ["form", *_CHANGES, "change_from_base"]


def _cells(results: StudyResults, abilities: Sequence[Ability]) -> Iterator[Row]:
    for cell in (cell for question in results.questions for cell in question.cells):
        run = cell.result
        if run is None:
            yield {**_place(cell), "status": "missing"}
            continue
        status = run.status if run.last else f"{run.status}, not at its end"
        about = {**_place(cell), "run": run.name, "status": status, "base": run.base}
        for ability in abilities:
            score = run.last.scores.get(ability.key) if run.last else None
            row = {**about, "ability": ability.name, "metric": ability.key}
            if score is not None and run.last is not None:
                row |= {"score": score.value, "low": score.low, "high": score.high, "n": score.n}
                row |= {"form": form_at(run, ability, run.last), **changes_of(run, ability)}
            yield {**row, "protocol": protocol_id(run, ability.benchmark)}


def means_csv(
    results: StudyResults, abilities: Sequence[Ability], measured: Measurements
) -> PlainTable:
    """Return the means over seeds at the end of training."""
    rows: list[Row] = []
    for group in (group for question in results.questions for group in groups_of(question)):
        for ability in abilities:
            side = end_of(group).having(ability)
            score = measured.mean(ability, side)
            if score is not None:
                place = {"question": group.question, "arm": group.arm, "axis": _axis(group.axis)}
                what = {"ability": ability.name, "metric": ability.key, "score": score.value}
                interval = {"low": score.low, "high": score.high, "n": score.n}
                rows.append({**place, **what, **interval, "seeds": len(side.points)})
    return PlainTable(["question", "arm", "axis", *_SCORE, "n", "seeds"], rows)


def boundaries_csv(results: StudyResults, abilities: Sequence[Ability]) -> PlainTable:
    """Return the scores of every cell before training and at every stage's end."""
    rows: list[Row] = []
    for cell in (cell for question in results.questions for cell in question.cells):
        for point in cell.result.boundaries if cell.result else ():
            for ability in abilities:
                score = point.scores.get(ability.key)
                if score is not None:
                    when = {"step": point.step, "after": point.after or "base"}
                    what = {"ability": ability.name, "metric": ability.key, "score": score.value}
                    interval = {"low": score.low, "high": score.high}
                    form = {"form": form_at(cell.result, ability, point) if cell.result else None}
                    rows.append({**_place(cell), **when, **what, **interval, **form})
    return PlainTable([*_PLACE, "step", "after", *_SCORE, "form"], rows)


def comparisons_csv(comparisons: Sequence[Comparison]) -> PlainTable:
    """Return every comparison; p values are corrected over all of them together."""
    columns = ["place", "ability", "before", "after", "difference", "low", "high", "p", "p_holm"]
    columns += ["p_equivalent", "smallest", "shown", "items", "clusters", "gained", "lost"]
    columns += ["seeds_before", "seeds_after", "test"]
    rows: list[Row] = []
    for c in dict.fromkeys(comparisons):
        row: dict[str, object] = {"place": c.place, "ability": c.ability.name}
        row |= {"before": c.before, "after": c.after, "shown": "yes" if c.shown else "no"}
        row |= {"seeds_before": c.seeds[0], "seeds_after": c.seeds[1], "why_not": c.why_not}
        if c.difference is not None:
            d = c.difference
            row |= {"difference": d.value, "low": d.low, "high": d.high, "p": d.p}
            row |= {"p_holm": c.p_holm, "items": d.n, "test": d.test}
            row |= {"gained": d.gained, "lost": d.lost, "clusters": c.clusters}
            row |= {"p_equivalent": c.p_equivalent, "smallest": c.smallest}
        rows.append(row)
    return PlainTable([*columns, "why_not"], rows)


def findings_csv(claims: Sequence[Claim]) -> PlainTable:
    """Return every sentence with its verdict."""
    return PlainTable(
        ["question", "claim", "ability", "verdict", "sentence", "claimed", "paper"],
        [
            {
                "question": claim.question,
                "claim": claim.text,
                "ability": finding.ability,
                "verdict": finding.verdict,
                "sentence": finding.sentence,
                "claimed": finding.claimed,
                "paper": claim.paper,
            }
            for claim in claims
            for finding in claim.findings
        ],
    )


def items_csv(changed: Changed) -> PlainTable:
    """Return every forgotten and gained item, with the whole answers."""
    columns = ["kind", "id", "stage", "step", "prompt", "before", "after"]
    return PlainTable(
        ["ability", "run_id", "run", *columns],
        [
            {"ability": name, "run_id": run.run_id, "run": run.name, **asdict(item)}
            for name, (run, items) in changed.items()
            for item in items
        ],
    )


def _place(cell: Cell) -> dict[str, object]:
    return {
        "question": cell.question,
        "arm": f"{cell.alone} alone" if cell.alone else cell.arm,
        "control": cell.control,
        "axis": _axis(cell.axis),
        "seed": cell.seed,
        "run_id": cell.result.run_id if cell.result else "",
    }


def _axis(axis: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in axis.items())
