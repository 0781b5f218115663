"""Read, plan and run a study, or print the commands that run it elsewhere."""

import copy
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sft_lab.config.compose import compose, dump
from sft_lab.cost.known_speed import KnownSpeeds
from sft_lab.cost.run_cost import RunCost, run_cost, run_parameters
from sft_lab.errors import Interrupted, RequestError, nearest
from sft_lab.launch.devices import num_ranks
from sft_lab.launch.run_config import RunConfig, find_run_logger
from sft_lab.paths import make_folder
from sft_lab.runs.checkpoint import stage_checkpoint
from sft_lab.runs.lock import run_lock
from sft_lab.runs.store import RunStore, prepare_store
from sft_lab.study.cell_warnings import warnings_by_cell
from sft_lab.study.controls import control_cells
from sft_lab.study.design import STUDY_KEYS, CellSpec, StudyDesign, cells
from sft_lab.study.executors import Executor, RayExecutor
from sft_lab.study.fork_server import thread_settings
from sft_lab.study.halving import Found
from sft_lab.study.job import CELL_TAG, PARENT_TAG, Job
from sft_lab.study.outcome import StudyOutcome
from sft_lab.study.processes import num_processes
from sft_lab.study.progress_table import ProgressTable
from sft_lab.study.read_design import read_design
from sft_lab.study.record import ParentRun, open_parent, study_digest
from sft_lab.study.runner import Progress, Runner
from sft_lab.study.runs import (
    CostOf,
    StudyRun,
    plan_run,
    plan_runs,
    planned_code,
    with_forks,
)
from sft_lab.study.search import SearchKey, check_search, run_searches, search_results, searches
from sft_lab.terminal import silence
from sft_lab.training.data_modules import StagedDataModule


class Study(NamedTuple):
    """A study that has been read and planned.

    Attributes:
        design: Its design.
        config: Its config, resolved.
        runs: Its runs, without those that searches may add.
        example: One of its runs, for what all of them share.
        searched: The runs that each search may add; planned only with costs.
    """

    design: StudyDesign
    config: Mapping[str, Any]
    runs: list[StudyRun]
    example: StudyRun
    searched: Mapping[SearchKey, Sequence[StudyRun]]

    @property
    def logger(self) -> Mapping[str, Any]:
        """Settings of the logger that all runs share."""
        return self.example.config.logger

    @property
    def store(self) -> RunStore:
        """The store of all runs."""
        return RunStore(str(self.logger["tracking_uri"]))


def read_study_config(arguments: list[str]) -> tuple[StudyDesign, Mapping[str, Any]]:
    """Return the design and the resolved config of a study.

    Args:
        arguments: ``--config FILE`` and overrides ``--KEY VALUE``.

    Raises:
        RequestError: If an argument or a value is wrong.
    """
    composed, files, rest = compose(arguments, STUDY_KEYS)
    if not files:
        raise RequestError("study needs --config FILE, for instance configs/studies/rq4.yaml.")
    if rest:
        raise RequestError(f"study has no option {rest[0]}; see python -m sft_lab study --help.")
    return read_design(composed), composed.resolved()


def lay_out(
    arguments: list[str], *, with_cost: bool = False, questions: Sequence[str] | None = None
) -> Study:
    """Read a study and plan all its runs.

    Args:
        arguments: Command-line arguments of ``study``.
        with_cost: Estimate what every run will cost.
        questions: The questions to run; by default all.

    Raises:
        RequestError: If the study or the config of a cell is wrong.
    """
    silence()
    design, config = read_study_config(arguments)
    if questions is not None:
        design, config = _only(questions, design, config)
    cost = _cost_of() if with_cost else None
    planned = cells(design)
    with warnings_by_cell() as begin:

        def report(done: int, total: int) -> None:
            begin(done)
            _report_layout(done, total)

        runs = plan_runs(planned, report, cost)
        if controls := control_cells(design, runs):
            runs = plan_runs([*planned, *controls], report, cost)
    first = next((arm_search.cells[0] for arm_search in searches(design)), None)
    if not runs and first is None:
        raise RequestError("questions: the study has no runs; give a question at least one arm.")
    known = [*runs, *([plan_run(first)] if first is not None else [])]
    stores = {run.config.tracking_uri for run in known}
    if len(stores) > 1:
        raise RequestError(
            f"all runs of a study must use one store, got {', '.join(sorted(stores))}; "
            "set trainer.logger.init_args.tracking_uri under set."
        )
    for run in known:
        _num_processes(design, run)
    for arm_search in searches(design):
        check_search(arm_search, known[-1].scores)
    searched = _searched(design, runs, cost) if cost is not None else {}
    return Study(design, config, runs, known[-1], searched)


def _only(
    names: Sequence[str], design: StudyDesign, config: Mapping[str, Any]
) -> tuple[StudyDesign, Mapping[str, Any]]:
    """Return a study with some of its questions, which is then a run of its own in MLflow."""
    for name in names:
        if name not in design.questions:
            known = list(design.questions)
            raise RequestError(
                f"--questions {name}: the study has no such question{nearest(name, known)}; it has "
                f"{', '.join(known)}."
            )
    kept = {name: question for name, question in design.questions.items() if name in names}
    written = {name: config["questions"][name] for name in kept}
    return replace(design, questions=kept), {**config, "questions": written}


def _num_processes(design: StudyDesign, run: StudyRun) -> int:
    try:
        return num_processes(design.resources, run.config.values.trainer.as_dict())
    except RequestError as fault:
        raise RequestError(f"cell '{run.name}': {fault}") from fault


def _searched(
    design: StudyDesign, runs: Sequence[StudyRun], cost: CostOf
) -> dict[SearchKey, list[StudyRun]]:
    """Return the runs that each search may add to those already planned."""
    known = {run.digest: run for run in runs}
    new: dict[SearchKey, list[str]] = {}
    for arm_search in searches(design):
        grid = {run.digest: run for run in (plan_run(cell, cost) for cell in arm_search.cells)}
        new[arm_search.key] = [digest for digest in grid if digest not in known]
        known |= {digest: grid[digest] for digest in new[arm_search.key]}
    forked = {run.digest: run for run in with_forks(list(known.values()))}
    return {key: [forked[digest] for digest in digests] for key, digests in new.items()}


def _report_layout(done: int, total: int) -> None:
    """Report on a terminal how many cells have been planned."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        sys.stderr.write(f"\rplanning cells: {done} of {total}{end}")
        sys.stderr.flush()


def _cost_of() -> CostOf:
    """Return a function that estimates a run's cost from the speed of earlier runs in its store."""
    speeds: dict[str, KnownSpeeds] = {}

    def cost(data: StagedDataModule, config: RunConfig) -> RunCost:
        uri = config.tracking_uri
        if uri not in speeds:
            speeds[uri] = KnownSpeeds(RunStore(uri))
        settings = config.model_settings
        num_devices = num_ranks(config.values.trainer.as_dict())
        speed = speeds[uri].speed(run_parameters(data, settings, num_devices))
        return run_cost(data, settings, speed, num_devices)

    return cost


def finished_runs(study: Study) -> dict[str, str]:
    """Return the ids of all finished runs in the store, by digest."""
    found: dict[str, str] = {}
    for run in reversed(study.store.runs()):
        digest = run.data.tags.get(CELL_TAG)
        if digest and run.info.status == "FINISHED":
            found[digest] = run.info.run_id
    return found


def print_commands(study: Study) -> str:
    """Return a command for every missing run; they may run in any order on any machine.

    Write the config that each command names. Afterwards the same study finds the finished runs.
    """
    finished = finished_runs(study)
    return "\n".join(
        shlex.join(["sft-lab", "fit", f"--config={write_config(study, run, {})}"])
        for run in study.runs
        if run.digest not in finished
    )


def write_config(study: Study, run: StudyRun, tags: Mapping[str, str]) -> Path:
    """Write a run's resolved config, with the name and tags by which the study finds the run.

    The file is named after the strategy, because ``fit`` takes the strategy tag from it.
    """
    config = copy.deepcopy(dict(run.config.plain))
    logger = find_run_logger(config["trainer"]["logger"])["init_args"]
    logger["run_name"] = run.name
    logger["tags"] = {**(logger["tags"] or {}), CELL_TAG: run.digest, **tags}
    file = _folder(study) / "cells" / run.digest[:12] / f"{run.config.strategy}.yaml"
    make_folder("mlruns/studies", file.parent)
    file.write_text(dump(config), encoding="utf-8")
    return file


def searches_left_out(study: Study) -> str:
    """Return a note on searches, whose runs cannot be printed; empty if there are none."""
    names = [" ".join(arm_search.key) for arm_search in searches(study.design)]
    if not names:
        return ""
    return (
        f"not printed, because their runs depend on earlier results: searches {', '.join(names)}; "
        "run them with the same command without --print."
    )


def run_study(study: Study, address: str | None, server: str | None = None) -> StudyOutcome:
    """Run the missing runs of a study and record the outcome in its MLflow run.

    Args:
        study: The study.
        address: A running Ray cluster; by default one is started.
        server: Address of a ``ForkServer`` that runs the jobs.

    Raises:
        BusyError: If the study is already running in another process.
    """
    folder = _folder(study) / study_digest(study.config)
    # `open_parent` reads and then writes the process tag; the lock excludes a second command.
    with run_lock(folder, f"study {study.design.name}"):
        return _run(study, address, server)


def _folder(study: Study) -> Path:
    return Path("mlruns/studies") / study.design.name


def _run(study: Study, address: str | None, server: str | None) -> StudyOutcome:
    uri, experiment = str(study.logger["tracking_uri"]), str(study.logger["experiment_name"])
    prepare_store(uri, experiment)
    location = study.logger.get("artifact_location")
    parent = open_parent(study.store, experiment, location, study.design.name, study.config)
    try:
        executor = RayExecutor(study.design.resources, address, server)
        try:
            outcome = _fill(study, parent, executor)
        finally:
            executor.stop()
    except (Interrupted, KeyboardInterrupt):
        parent.end("KILLED")
        raise
    except BaseException:
        parent.end("FAILED")
        raise
    parent.end("FINISHED" if outcome.is_complete else "FAILED")
    return outcome


def _fill(study: Study, parent: ParentRun, executor: Executor) -> StudyOutcome:
    recorded: dict[str, str] = {}
    found: dict[SearchKey, Found | None] = {}

    def record(progress: Mapping[str, Progress]) -> None:
        parent.record(study.design, study.example, progress, found)

    def show(progress: Mapping[str, Progress]) -> None:
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
            on_lost=lambda run: parent.give_up(run.digest),
            on_progress=show,
        )
        progress = runner.run(study.runs, finished_runs(study))
        found |= run_searches(study.design, study.store, run_cell)
        record(progress)
        results = search_results(study.design, found)
        return StudyOutcome(study.design.name, parent.run_id, progress, results)


def make_job(study: Study, parent: ParentRun, run: StudyRun, fork: str | None) -> Job:
    """Return the job of a run; it starts from the base if the checkpoint to fork from is gone."""
    folder = Path.cwd()
    dirpath = Path(run.config.plain["checkpoint"]["dirpath"])
    if fork is not None and not stage_checkpoint(dirpath, *fork.split("@")).is_file():
        fork = None
    processes = _num_processes(study.design, run)
    return Job(
        digest=run.digest,
        code=planned_code(),
        name=run.name,
        config=write_config(study, run, {PARENT_TAG: parent.run_id}),
        fork=fork,
        tracking_uri=str(study.logger["tracking_uri"]),
        dirpath=dirpath,
        log=folder / _folder(study) / f"{run.digest[:12]}.log",
        folder=folder,
        environment={
            **_forwarded(os.environ),
            **thread_settings(max(1, study.design.resources.cpus // processes)),
            "COLUMNS": os.environ.get("COLUMNS", "100"),
        },
    )


def _forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that runs read: folders, the world, access to servers."""
    prefixes = ("SFT_LAB_", "MLFLOW_", "HF_")
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}
