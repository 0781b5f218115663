"""The study's own run in MLflow, under which its runs are nested: its config, cells and report."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sft_lab.analysis.study_results import Cell, Question, SearchResult, StudyResults
from sft_lab.errors import BusyError
from sft_lab.runs.lock import is_alive, is_elsewhere, this_process
from sft_lab.runs.results import read_result
from sft_lab.runs.store import PROCESS_TAG, RunStore
from sft_lab.study.design import CellSpec, StudyDesign
from sft_lab.study.halving import Found
from sft_lab.study.job import CELL_TAG, PARENT_TAG
from sft_lab.study.runner import Progress
from sft_lab.study.runs import StudyRun
from sft_lab.study.search import SearchKey, search_results

STUDY_TAG = "sft_lab.study"
_DIGEST_TAG = "sft_lab.study_digest"
_CELLS = "cells.json"


@dataclass(frozen=True)
class ParentRun:
    """A study's run in MLflow."""

    store: RunStore
    run_id: str

    def end(self, status: str) -> None:
        """Close it: FINISHED, FAILED where cells are missing, KILLED where it was stopped."""
        self.store.client.set_terminated(self.run_id, status)

    def give_up(self, digest: str | None = None) -> None:
        """Mark runs KILLED whose machine is gone; of those of this machine the store knows itself.

        Args:
            digest: Those of a run; of the whole study where not given.
        """
        for run in self.store.runs():
            tags = run.data.tags
            if (
                run.info.status == "RUNNING"
                and tags.get(PARENT_TAG) == self.run_id
                and digest in (None, tags.get(CELL_TAG))
                and is_elsewhere(tags[PROCESS_TAG])
            ):
                self.store.client.set_terminated(run.info.run_id, "KILLED")

    def record(
        self,
        design: StudyDesign,
        example: StudyRun,
        progress: Mapping[str, Progress],
        found: Mapping[SearchKey, Found | None],
    ) -> None:
        """File what became of every cell; the file is written anew each time.

        Args:
            design: The study.
            example: A run of it, which says what is measured.
            progress: What became of every run, by digest.
            found: What the searches have come to.
        """
        rows = [
            {
                "question": cell.question,
                "arm": cell.arm,
                "axis": dict(cell.axis),
                "seed": cell.seed,
                "name": p.run.name,
                "digest": p.run.digest,
                "state": p.state,
                "run_id": p.run_id,
                "reason": p.reason,
                "steps": p.run.steps,
                "samples": p.run.samples,
                "tokens": p.run.tokens,
                "forked_from": p.run.fork.run if p.run.fork else None,
            }
            for cell, p in sorted(
                ((cell, p) for p in progress.values() for cell in p.run.cells),
                key=lambda row: place(design, row[0]),
            )
        ]
        content = {
            "name": design.name,
            "abilities": dict(example.abilities),
            "sources": dict(example.sources),
            "questions": {
                name: {"title": question.title, "design": question.design}
                for name, question in design.questions.items()
            },
            "cells": rows,
            "searches": [asdict(result) for result in search_results(design, found)],
        }
        self.store.client.log_text(self.run_id, json.dumps(content, indent=2), _CELLS)


def place(design: StudyDesign, cell: CellSpec) -> tuple[int, ...]:
    """Return where a cell stands in the order in which the design is written."""
    arms = design.questions[cell.question].arms
    grid = arms[cell.arm].grid
    return (
        list(design.questions).index(cell.question),
        list(arms).index(cell.arm),
        *(list(map(str, grid[name].values)).index(value) for name, value in cell.axis.items()),
        cell.seed,
    )


def study_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of a study's config; what its report shows does not count."""
    runs = {key: value for key, value in config.items() if key != "report"}
    return hashlib.sha256(json.dumps(runs, sort_keys=True, default=str).encode()).hexdigest()


def open_parent(
    store: RunStore, experiment: str, artifacts: str | None, name: str, config: Mapping[str, Any]
) -> ParentRun:
    """Return the run of a study: the newest of the same config that has not finished, or a new one.

    Raises:
        BusyError: If it goes on in another process.
    """
    digest = study_digest(config)
    client = store.client
    for run in find_parents(store, name):
        if run.data.tags.get(_DIGEST_TAG) != digest or run.info.status == "FINISHED":
            continue
        process = run.data.tags.get(PROCESS_TAG, "")
        if run.info.status == "RUNNING" and process and is_alive(process):
            raise BusyError(
                f"study {name} goes on already, in process {process} "
                f"(MLflow run {run.info.run_id[:8]}). Stop that one first, or wait for it; where "
                "its machine is gone, set the run's status to KILLED."
            )
        client.set_tag(run.info.run_id, PROCESS_TAG, this_process())
        client.update_run(run.info.run_id, status="RUNNING")
        found = ParentRun(store, run.info.run_id)
        found.give_up()  # Ray stops what a driver has begun when that is gone
        return found
    experiment_id = client.open_experiment(experiment, artifacts)
    tags = {STUDY_TAG: name, _DIGEST_TAG: digest, PROCESS_TAG: this_process(), "command": "study"}
    run = client.create_run(experiment_id, tags=tags, run_name=name)
    client.log_dict(run.info.run_id, dict(config), "study.yaml")
    return ParentRun(store, run.info.run_id)


def find_parents(store: RunStore, name: str = "%") -> list[Any]:
    """Return the runs of studies of a name, or of all, newest first; makes no store."""
    if not store.is_there:
        return []
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    if not experiments:
        return []
    found: list[Any] = store.client.search_runs(
        experiments,
        filter_string=f"tags.`{STUDY_TAG}` LIKE '{name}'",
        order_by=["attributes.start_time DESC"],
    )
    # In a pattern, _ stands for any letter.
    return [run for run in found if name in ("%", run.data.tags[STUDY_TAG])]


def read_study(store: RunStore, run_id: str) -> StudyResults:
    """Return a study as it stands: its cells, each with its run once that has finished.

    Raises:
        RequestError: If the run is none of a study.
    """
    content = json.loads(store.artifact_text(run_id, _CELLS))
    by_id = {run.info.run_id: run for run in store.runs()}
    ids = {row["run_id"] for row in content["cells"] if row["run_id"] in by_id}
    results = {run_id: read_result(store, by_id[run_id]) for run_id in sorted(ids)}
    return StudyResults(
        name=content["name"],
        abilities=content["abilities"],
        sources=_sources(content, [by_id[run_id] for run_id in sorted(ids)]),
        searches=[SearchResult(**row) for row in content["searches"]],
        questions=[
            Question(
                name=name,
                title=question["title"],
                design=question["design"],
                cells=[
                    Cell(
                        question=name,
                        arm=row["arm"],
                        axis=row["axis"],
                        seed=row["seed"],
                        result=results.get(row["run_id"]),
                    )
                    for row in content["cells"]
                    if row["question"] == name
                ],
            )
            for name, question in content["questions"].items()
        ],
    )


def _sources(content: Mapping[str, Any], runs: Sequence[Any]) -> Mapping[str, str]:
    """Return the source that teaches each ability, by the ability's name."""
    if "sources" in content:
        recorded: Mapping[str, str] = content["sources"]
        return recorded
    # Files of before name abilities only; a run logs a loss for each source that it trains.
    trained = {key for run in runs for key in run.data.metrics}
    return {name: name for name in content["abilities"] if f"train_loss/{name}" in trained}
