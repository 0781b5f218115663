"""The commands of a study: its plan, its run, the commands that would run it elsewhere."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sft_lab.checkpoint import stage_checkpoint
from sft_lab.data.module import StagedDataModule
from sft_lab.errors import Interrupted, RequestError
from sft_lab.lab_cli import compose, silence
from sft_lab.run_plan import RunCost, run_cost, run_parameters
from sft_lab.run_speed import KnownSpeeds
from sft_lab.study.design import STUDY_KEYS, CellSpec, StudyDesign, cells
from sft_lab.study.executors import Executor, RayExecutor
from sft_lab.study.job import CELL_TAG, Job, run_arguments
from sft_lab.study.k_finder import Found
from sft_lab.study.parent_run import ParentRun, open_parent
from sft_lab.study.progress_table import ProgressTable
from sft_lab.study.read_design import read_design
from sft_lab.study.runner import Progress, Runner
from sft_lab.study.runs import CostOf, StudyRun, logger_settings, plan_run, plan_runs, with_forks
from sft_lab.study.search import SearchKey, check_search, run_searches, searches
from sft_lab.tables import format_table
from sft_lab.tracking import RunStore, absolute, prepare_store


class Study(NamedTuple):
    """A study that has been read and laid out.

    Attributes:
        design: Its design.
        config: Its config, resolved.
        runs: Its runs, but for those that searches will ask for.
        example: A run of it, which has what all of them share.
    """

    design: StudyDesign
    config: Mapping[str, Any]
    runs: list[StudyRun]
    example: StudyRun

    @property
    def logger(self) -> Mapping[str, Any]:
        """The settings of the logger that all runs share."""
        return self.example.logger

    @property
    def store(self) -> RunStore:
        """The store of all runs."""
        return RunStore(str(self.logger["tracking_uri"]))


def read_study_config(arguments: list[str]) -> tuple[StudyDesign, Mapping[str, Any]]:
    """Return design and resolved config of a study.

    Args:
        arguments: ``--config FILE``, overrides ``--KEY VALUE``.

    Raises:
        RequestError: If something is wrong with them.
    """
    composed, files, rest = compose(arguments, STUDY_KEYS)
    if not files:
        raise RequestError("study needs --config FILE, for instance configs/studies/rq4.yaml.")
    if rest:
        raise RequestError(f"study knows no {rest[0]}; see python -m sft_lab study --help.")
    return read_design(composed), composed.resolved()


def lay_out(arguments: list[str], *, with_cost: bool = False) -> Study:
    """Read a study and lay out all its runs.

    Args:
        arguments: What stands behind ``study``.
        with_cost: Say of every run what it will cost.

    Raises:
        RequestError: If something is wrong with the study or with the config of a cell.
    """
    silence()
    design, config = read_study_config(arguments)
    told = _tell_layout if sys.stderr.isatty() else _tell_nothing
    runs = plan_runs(cells(design), told, _cost_of() if with_cost else None)
    first = next((one.cells[0] for one in searches(design)), None)
    if not runs and first is None:
        raise RequestError("questions: the study has no run.")
    known = [*runs, *([plan_run(first)] if first is not None else [])]
    stores = {str(run.logger["tracking_uri"]) for run in known}
    if len(stores) > 1:
        raise RequestError(
            f"the runs of a study share one store, got {', '.join(sorted(stores))}; "
            "set trainer.logger.init_args.tracking_uri under set."
        )
    for one in searches(design):
        check_search(one, known[-1].scores)
    return Study(design, config, runs, known[-1])


def _tell_layout(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\rlaying out {done} of {total} cells{end}")
    sys.stderr.flush()


def _tell_nothing(done: int, total: int) -> None:
    return


def _cost_of() -> CostOf:
    """Return what says what a run will cost, by the speed of earlier runs in its store."""
    speeds: dict[str, KnownSpeeds] = {}

    def cost(data: StagedDataModule, config: Mapping[str, Any]) -> RunCost:
        uri = str(logger_settings(config)["tracking_uri"])
        if uri not in speeds:
            speeds[uri] = KnownSpeeds(RunStore(uri))
        return run_cost(data, config, speeds[uri].speed(run_parameters(data, config)))

    return cost


def finished_runs(study: Study) -> dict[str, str]:
    """Return run ids by digest of what the store holds as finished."""
    found: dict[str, str] = {}
    for run in reversed(study.store.runs()):
        digest = run.data.tags.get(CELL_TAG)
        if digest and run.info.status == "FINISHED":
            found[digest] = run.info.run_id
    return found


def print_commands(study: Study) -> str:
    """Return a command for every run that is missing, to be run in any order, anywhere.

    What they train is found by the same study afterwards.
    """
    there = finished_runs(study)
    return "\n".join(
        shlex.join(
            [
                "python",
                "-m",
                "sft_lab",
                "fit",
                *run.arguments,
                *run_arguments(run.name, {CELL_TAG: run.digest}),
            ]
        )
        for run in study.runs
        if run.digest not in there
    )


def run_study(study: Study, address: str | None) -> dict[str, Progress]:
    """Run what is missing of a study; its run in MLflow tells how it ended.

    Returns:
        The progress of every run, by digest.
    """
    uri, experiment = str(study.logger["tracking_uri"]), str(study.logger["experiment_name"])
    prepare_store(uri, experiment)
    location = study.logger.get("artifact_location")
    artifacts = (
        Path(str(location)).resolve().as_uri()
        if location and absolute(uri).startswith("sqlite:")
        else None
    )
    parent = open_parent(study.store, experiment, artifacts, study.design.name, study.config)
    try:
        executor = RayExecutor(study.design.resources, address)
        try:
            progress = _fill(study, parent, executor)
        finally:
            executor.stop()
    except (Interrupted, KeyboardInterrupt):
        parent.end("KILLED")
        raise
    except BaseException:
        parent.end("FAILED")
        raise
    complete = all(p.state == "finished" for p in progress.values())
    parent.end("FINISHED" if complete else "FAILED")
    return progress


def _fill(study: Study, parent: ParentRun, executor: Executor) -> dict[str, Progress]:
    recorded: dict[str, str] = {}
    found: dict[SearchKey, Found | None] = {}

    def record(progress: Mapping[str, Progress]) -> None:
        parent.record(study.design, study.example, progress, found)

    def tell(progress: Mapping[str, Progress]) -> None:
        states = {digest: p.state for digest, p in progress.items()}
        if states != recorded:
            record(progress)
            recorded.update(states)
        table(progress)

    def run_cell(cell: CellSpec) -> str | None:
        run = with_forks([*(p.run for p in runner.progress.values()), plan_run(cell)])[-1]
        known = runner.progress.get(run.digest)
        if known is not None:
            known.run = replace(known.run, cells=(*known.run.cells, cell))
        runner.run([run], finished_runs(study))
        return runner.progress[run.digest].run_id

    with ProgressTable(study.store) as table:
        runner = Runner(
            executor,
            lambda run, fork: make_job(study, parent, run, fork),
            attempts=study.design.attempts,
            lost=lambda run: parent.give_up(run.digest),
            tell=tell,
        )
        progress = runner.run(study.runs, finished_runs(study))
        found |= run_searches(study.design, study.store, run_cell)
        record(progress)
        return progress


def make_job(study: Study, parent: ParentRun, run: StudyRun, fork: str | None) -> Job:
    """Return the job of a run, from nothing where the checkpoint to fork from is gone."""
    folder = Path.cwd()
    dirpath = run.config.get("checkpoint", {}).get("dirpath", "mlruns/checkpoints")
    if fork is not None and not stage_checkpoint(Path(dirpath), *fork.split("@")).is_file():
        fork = None
    threads = str(study.design.resources.cpus)
    return Job(
        digest=run.digest,
        name=run.name,
        arguments=run.arguments,
        fork=fork,
        parent=parent.run_id,
        tracking_uri=str(study.logger["tracking_uri"]),
        dirpath=Path(dirpath),
        log=folder / "mlruns" / "studies" / study.design.name / f"{run.digest[:12]}.log",
        folder=folder,
        environment={
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "COLUMNS": os.environ.get("COLUMNS", "100"),
        },
    )


def outcome_table(progress: Mapping[str, Progress]) -> str:
    """Return how a study ended: counts, and every run that failed with its reason."""
    states = [p.state for p in progress.values()]
    lines = [f"{states.count('finished')} of {len(states)} runs finished."]
    failed = [p for p in progress.values() if p.state == "failed"]
    if failed:
        rows = [[p.run.name, str(p.attempts), p.reason[:100]] for p in failed]
        lines.append(format_table(["failed", "attempts", "reason"], rows))
    return "\n".join(lines)
