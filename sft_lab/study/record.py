"""Record a study as an MLflow run of its own: config, cells and report, its runs nested below."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sft_lab.analysis.study_results import Cell, Question, SearchResult, StudyResults
from sft_lab.errors import BusyError
from sft_lab.runs.lock import is_alive, is_elsewhere, this_process
from sft_lab.runs.results import read_result
from sft_lab.runs.store import PROCESS_TAG, STUDY_TAG, RunStore
from sft_lab.study.design import CellSpec, StudyDesign
from sft_lab.study.digests import json_digest
from sft_lab.study.halving import Found
from sft_lab.study.job import CELL_TAG, PARENT_TAG
from sft_lab.study.runner import Progress
from sft_lab.study.runs import StudyRun
from sft_lab.study.search import SearchKey, search_results

_DIGEST_TAG = "sft_lab.study_digest"
_CELLS = "cells.json"


@dataclass(frozen=True)
class ParentRun:
    """A study's own run in MLflow."""

    store: RunStore
    run_id: str

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED if cells are missing, KILLED if it was stopped."""
        self.store.client.set_terminated(self.run_id, status)

    def give_up(self, digest: str | None = None) -> None:
        """Mark running runs of other machines KILLED; the store itself corrects this machine's.

        Args:
            digest: Only runs of this digest; by default, all runs of the study.
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
        """Write the state of every cell and the results of the searches, replacing the last file.

        Args:
            design: The study.
            example: One of its runs, for the abilities that all of them measure.
            progress: The progress of every run, by digest.
            found: The results of the searches so far.
        """
        rows = [
            {
                "question": cell.question,
                "arm": cell.arm,
                "axis": dict(cell.axis),
                "seed": cell.seed,
                "control": cell.control,
                "alone": cell.alone,
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
                key=lambda row: _grid_position(design, row[0]),
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


def _grid_position(design: StudyDesign, cell: CellSpec) -> tuple[int | str, ...]:
    """Return a sort key that puts cells in the order of the design."""
    arms = design.questions[cell.question].arms
    grid = arms[cell.arm].grid
    return (
        list(design.questions).index(cell.question),
        list(arms).index(cell.arm),
        *(list(map(str, grid[name].values)).index(value) for name, value in cell.axis.items()),
        cell.control,
        cell.alone,
        cell.seed,
    )


def study_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of a study's config, without its report section."""
    return json_digest({key: value for key, value in config.items() if key != "report"})


def open_parent(
    store: RunStore, experiment: str, artifacts: str | None, name: str, config: Mapping[str, Any]
) -> ParentRun:
    """Return a study's own run: the newest unfinished one with the same config, or a new one.

    Raises:
        BusyError: If the study is already running in another process.
    """
    digest = study_digest(config)
    client = store.client
    for run in find_parents(store, name):
        if run.data.tags.get(_DIGEST_TAG) != digest or run.info.status == "FINISHED":
            continue
        process = run.data.tags.get(PROCESS_TAG, "")
        if run.info.status == "RUNNING" and process and is_alive(process):
            raise BusyError(
                f"study {name} is already running in process {process} "
                f"(MLflow run {run.info.run_id[:8]}). Stop it or wait for it; if its machine is "
                "gone, set the run's status to KILLED in MLflow."
            )
        client.set_tag(run.info.run_id, PROCESS_TAG, this_process())
        client.update_run(run.info.run_id, status="RUNNING")
        found = ParentRun(store, run.info.run_id)
        found.give_up()  # Ray has stopped all jobs of a driver that is gone
        return found
    experiment_id = client.open_experiment(experiment, artifacts)
    tags = {STUDY_TAG: name, _DIGEST_TAG: digest, PROCESS_TAG: this_process(), "command": "study"}
    run = client.create_run(experiment_id, tags=tags, run_name=name)
    client.log_dict(run.info.run_id, dict(config), "study.yaml")
    return ParentRun(store, run.info.run_id)


def find_parents(store: RunStore, name: str = "%") -> list[Any]:
    """Return the own runs of studies of a name, or of all, newest first; never creates a store."""
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
    # LIKE matches any character for _, so the name is compared again.
    return [run for run in found if name in ("%", run.data.tags[STUDY_TAG])]


def read_study(store: RunStore, run_id: str) -> StudyResults:
    """Return a study's results so far: its cells, each with its run if that has finished.

    Raises:
        RequestError: If the run is not a study's.
    """
    content = store.artifact(run_id, _CELLS, json.loads)
    by_id = {run.info.run_id: run for run in store.runs()}
    ids = {row["run_id"] for row in content["cells"] if row["run_id"] in by_id}
    results = {run_id: read_result(store, by_id[run_id]) for run_id in sorted(ids)}
    return StudyResults(
        name=content["name"],
        abilities=content["abilities"],
        sources=content["sources"],
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
                        control=row["control"],
                        alone=row["alone"],
                    )
                    for row in content["cells"]
                    if row["question"] == name
                ],
            )
            for name, question in content["questions"].items()
        ],
    )
