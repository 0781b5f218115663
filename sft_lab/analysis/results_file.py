"""A study's results as one small file: everything that its report is computed from.

It holds scores, the mark of every item at every stage boundary, records and settings of the runs,
and the answers to forgotten and gained items of the runs that forgot most, so that a report can be
built without the store, the same to the byte.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sft_lab.analysis.abilities import abilities_of
from sft_lab.analysis.forgetting import Changed, ChangedItem, fall_of, most_forgotten
from sft_lab.analysis.measurements import MarksReader, Measurements
from sft_lab.analysis.outcomes import Outcomes, outcomes
from sft_lab.analysis.protocols import finished_runs
from sft_lab.analysis.study_results import Cell, Question, SearchResult, StudyResults
from sft_lab.errors import RequestError
from sft_lab.runs.evaluations import Point
from sft_lab.runs.record import RunRecord
from sft_lab.runs.results import ItemAnswer, RunResult

SCHEMA = 4
_SETTINGS = re.compile(
    r"model\.(lora.*|quantization)|data\.batch_size|corpus\.template|data\.stages\..+\.(lr|epochs)"
)


def results_text(results: StudyResults, reader: MarksReader) -> str:
    """Return the text of a study's results file.

    Args:
        results: The study.
        reader: Returns the answers of a run to a benchmark at a step, or raises a RequestError.
    """
    tables = _Tables()
    runs = {
        run_id: _run(run, results, reader, tables) for run_id, run in finished_runs(results).items()
    }
    questions = [
        {
            "name": question.name,
            "title": question.title,
            "design": question.design,
            "cells": [
                {
                    "arm": cell.arm,
                    "axis": dict(cell.axis),
                    "seed": cell.seed,
                    "control": cell.control,
                    "alone": cell.alone,
                    "run": cell.result.run_id if cell.result else None,
                }
                for cell in question.cells
            ],
        }
        for question in results.questions
    ]
    content = {
        "schema": SCHEMA,
        "name": results.name,
        "abilities": dict(results.abilities),
        "sources": dict(results.sources),
        "margin": results.margin,
        "searches": [asdict(found) for found in results.searches],
        "questions": questions,
        "changed": _changed(results, reader),
        "tables": tables.rows,
        "runs": runs,
    }
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def _changed(results: StudyResults, reader: MarksReader) -> dict[str, Any]:
    runs = list(finished_runs(results).values())
    found = most_forgotten(runs, abilities_of(results), Measurements(reader))
    return {
        name: [run.run_id, [list(asdict(item).values()) for item in items]]
        for name, (run, items) in found.items()
    }


def read_results(files: Sequence[Path]) -> tuple[StudyResults, MarksReader, Changed]:
    """Return the study of one or several results files, the reader of its marks, changed items.

    Args:
        files: Of one study, such as one of each question.

    Raises:
        RequestError: If a file is no results file, if files are of different studies, or if a
            question is in two of them.
    """
    studies = [_read(file) for file in files]
    marks: dict[tuple[str, str, int], list[ItemAnswer]] = {}
    for _, found, _ in studies:
        marks |= found
    first, *others = (study for study, _, _ in studies)
    questions = list(first.questions)
    for file, other in zip(files[1:], others, strict=True):
        if (other.abilities, other.sources) != (first.abilities, first.sources):
            raise RequestError(
                f"--results {file}: its abilities are {dict(other.abilities)}, those of {files[0]} "
                f"{dict(first.abilities)}; name files of one study."
            )
        if twice := {q.name for q in other.questions} & {q.name for q in questions}:
            raise RequestError(
                f"--results {file}: the question {min(twice)!r} is in an earlier file already."
            )
        questions += other.questions
    searches = [found for study, _, _ in studies for found in study.searches]

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        if (run.run_id, benchmark, step) not in marks:
            raise RequestError(f"run {run.name!r} has no items of {benchmark} at step {step}.")
        return marks[run.run_id, benchmark, step]

    whole = replace(first, questions=questions, searches=searches)
    changed: dict[str, tuple[RunResult, Sequence[ChangedItem]]] = {}
    for ability in abilities_of(whole):
        every = [found[ability.name] for _, _, found in studies if ability.name in found]
        if every:
            changed[ability.name] = max(every, key=lambda found: fall_of(found[0], ability))
    return whole, read, changed


class _Tables:
    """Values that many runs share, each written once."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.rows)
            self.rows.append(value)
        return self._places[text]


def _run(
    run: RunResult, results: StudyResults, reader: MarksReader, tables: _Tables
) -> dict[str, Any]:
    record = json.loads(run.record.to_json())
    stages = record.pop("stages")
    marks = [
        [benchmark, point.step, *found]
        for point in run.boundaries
        for key in results.abilities.values()
        for benchmark in [key.partition("/")[0]]
        if (found := _marks(run, key, point.step, reader, tables)) is not None
    ]
    settings = {name: text for name, text in run.settings.items() if _SETTINGS.fullmatch(name)}
    return {
        "name": run.name,
        "strategy": run.strategy,
        "status": run.status,
        "seed": run.seed,
        "base": run.base,
        "settings": tables.place(settings),
        "record": tables.place(record),
        "stages": stages,
        "points": [tables.place(_packed(point, tables)) for point in run.points],
        "marks": marks,
    }


_GROUPS = ("scores", "forms")


def _packed(point: Point, tables: _Tables) -> dict[str, Any]:
    """Return an evaluation with the keys of its scores in a table, since most runs share them.

    Losses and scores of selection items are left out: no report shows them.
    """
    content = replace(point, selection={}, losses={}).to_dict()
    for group in _GROUPS:
        scores = content[group]
        values = [list(score.values()) for score in scores.values()]
        names = {key: list(score) for key, score in scores.items()}
        content[group] = [tables.place(names), values]
    return content


def _unpacked(content: Mapping[str, Any], tables: Sequence[Any]) -> dict[str, Any]:
    """Return an evaluation as ``Point.from_dict`` reads it."""
    found = dict(content)
    for group in _GROUPS:
        place, values = content[group]
        found[group] = {
            key: dict(zip(names, score, strict=True))
            for (key, names), score in zip(tables[place].items(), values, strict=True)
        }
    return found


def _marks(
    run: RunResult, key: str, step: int, reader: MarksReader, tables: _Tables
) -> tuple[int, str, Any] | None:
    """Return the items' place, the mark's name and the marks; None if there are none."""
    benchmark, _, score = key.partition("/")
    entry = run.benchmarks.get(benchmark)
    mark = entry.marks.get(score) if entry else None
    if mark is None:
        return None
    try:
        found = outcomes(reader(run, benchmark, step), mark)
    except RequestError:
        return None
    ids = list(found.prompts)
    items = {
        "ids": ids,
        "clusters": [found.clusters[item] for item in ids],
        "prompts": [_digest(found, item) for item in ids],
    }
    values = [found.marks.get(item) for item in ids]
    if set(values) <= {0, 1, None}:
        return tables.place(items), mark, "".join("-" if v is None else f"{v:.0f}" for v in values)
    return tables.place(items), mark, values


def _digest(found: Outcomes, item: str) -> str:
    return hashlib.sha256("\0".join(found.prompts[item]).encode()).hexdigest()[:12]


def _read(
    file: Path,
) -> tuple[StudyResults, dict[tuple[str, str, int], list[ItemAnswer]], Changed]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"--results {file} does not exist.") from None
    except (OSError, ValueError) as fault:
        raise RequestError(f"--results {file} is no results file: {fault}") from fault
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RequestError(
            f"--results {file} is no results file of this version (schema {SCHEMA}); "
            "report --study writes one, results.json."
        )
    tables = content["tables"]
    runs: dict[str, RunResult] = {}
    marks: dict[tuple[str, str, int], list[ItemAnswer]] = {}
    for run_id, found in content["runs"].items():
        record = {**tables[found["record"]], "stages": found["stages"]}
        runs[run_id] = RunResult(
            run_id=run_id,
            **{name: found[name] for name in ("name", "strategy", "status", "seed", "base")},
            settings=tables[found["settings"]],
            record=RunRecord.from_json(json.dumps(record), f"run {run_id[:8]}"),
            points=tuple(
                Point.from_dict(_unpacked(tables[place], tables), f"run {run_id[:8]}")
                for place in found["points"]
            ),
            final={},
        )
        for benchmark, step, place, mark, values in found["marks"]:
            answers = _answers(tables[place], mark, values)
            marks[run_id, benchmark, step] = answers
    questions = [
        Question(
            **{name: question[name] for name in ("name", "title", "design")},
            cells=[
                Cell(
                    question["name"],
                    **{k: cell[k] for k in ("arm", "axis", "seed", "control", "alone")},
                    result=runs.get(cell["run"]),
                )
                for cell in question["cells"]
            ],
        )
        for question in content["questions"]
    ]
    study = StudyResults(
        name=content["name"],
        abilities=content["abilities"],
        sources=content["sources"],
        questions=questions,
        searches=[SearchResult(**found) for found in content["searches"]],
        margin=content["margin"],
    )
    changed = {
        name: (runs[run_id], [ChangedItem(*item) for item in items])
        for name, (run_id, items) in content["changed"].items()
    }
    return study, marks, changed


def _answers(items: Mapping[str, Sequence[str]], mark: str, values: Any) -> list[ItemAnswer]:
    known = [None if v in ("-", None) else float(v) for v in values]
    columns = (items["ids"], items["clusters"], items["prompts"], known)
    return [
        ItemAnswer(item, item, {mark: value}, "", prompt, cluster)
        for item, cluster, prompt, value in zip(*columns, strict=True)
    ]
