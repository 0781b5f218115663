"""Fork a run from the end of another run's stage: find it, check the config, copy its record."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric

from sft_lab.config.identity import contradiction, identity
from sft_lab.errors import RequestError
from sft_lab.runs.checkpoint import (
    AtomicCheckpointIO,
    RunStamp,
    last_checkpoint,
    link_or_copy,
    read_checkpoint,
    stage_checkpoint,
    stamp_of,
)
from sft_lab.runs.evaluations import evaluated_steps, evaluation_path
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.record import RunRecord
from sft_lab.runs.store import TABLES_TAG, RunStore
from sft_lab.training.schedule import Schedule

FORK_TAG = "sft_lab.forked_from"


@dataclass(frozen=True)
class Fork:
    """The stage of another run from whose end a run starts.

    Attributes:
        run_id: The other run.
        stages: The stages it had trained by then, in order.
        step: Optimizer steps it had taken.
        checkpoint: Its checkpoint at that step.
    """

    run_id: str
    stages: tuple[str, ...]
    step: int
    checkpoint: Path

    @property
    def name(self) -> str:
        """``<run id>@<stage>``, which ``--from`` takes as well."""
        return f"{self.run_id}@{self.stages[-1]}"


def parse_fork(text: str) -> tuple[str, str]:
    """Return run and stage of ``RUN@STAGE``; a run's name may contain an @, a stage's cannot.

    >>> parse_fork("dmt k=1/16 seed 0@specialize")
    ('dmt k=1/16 seed 0', 'specialize')
    """
    run, _, stage = text.rpartition("@")
    if not run or not stage:
        raise RequestError(
            f"--from: expected RUN@STAGE, such as 'mixed_sequential seed 0@specialize', "
            f"got {text!r}. RUN is an id, the beginning of one, or a run name."
        )
    return run, stage


def find_fork(store: RunStore, dirpath: Path, text: str, config: Mapping[str, Any]) -> Fork:
    """Return the fork that ``--from`` names, with the config checked against its run.

    Args:
        store: Where the run is recorded.
        dirpath: Folder of all runs' checkpoints.
        text: ``RUN@STAGE``.
        config: The resolved config of the run that is to start there.

    Raises:
        RequestError: If there is no such run or stage, no checkpoint of its end, or the config
            contradicts what the run had trained by then.
    """
    name, stage = parse_fork(text)
    run = store.find(name)
    run_id = run.info.run_id
    named = f"--from {text}: run {run_id[:8]} ({run.info.run_name})"
    if (command := run.data.tags.get("command")) != "fit":
        raise RequestError(f"{named} is one of `{command}`, which trains no stage; name a fit.")
    trained = yaml.safe_load(store.artifact_text(run_id, "config.yaml"))
    stages = list(trained["data"]["stages"])
    if stage not in stages:
        raise RequestError(f"{named} has no stage '{stage}'; it has {', '.join(stages)}.")
    path = stage_checkpoint(dirpath, run_id, stage)
    if not path.is_file():
        raise RequestError(f"{named} {_why_no_checkpoint(store, run_id, stage, path)}")
    checkpoint = read_checkpoint(path, option="--from:")
    old = stamp_of(checkpoint).config
    num_stages = list(old["data"]["stages"]).index(stage) + 1
    if found := contradiction(old, identity(config), num_stages):
        key, before, now = found
        raise RequestError(
            f"{key}: {named} has trained with {before} up to there, the config says {now}. Up to "
            f"the end of stage '{stage}' both must be the same: set {key} to {before}, or leave "
            "--from out to start from the base."
        )
    names = tuple(list(old["data"]["stages"])[:num_stages])
    return Fork(run_id, names, int(checkpoint["global_step"]), path)


def _why_no_checkpoint(store: RunStore, run_id: str, stage: str, path: Path) -> str:
    history = store.client.get_metric_history(run_id, "progress/samples")
    step = max((point.step for point in history), default=0)
    ended = {Path(file.path).name for file in store.client.list_artifacts(run_id, "stages")}
    if stage not in ended:
        return (
            f"has not reached the end of stage '{stage}', its last point is at step {step}. "
            "Resume it first: its own config with --ckpt_path last."
        )
    return (
        f"has kept no checkpoint of the end of stage '{stage}': there is no {path}. Set "
        "checkpoint.dirpath to the folder of its checkpoints, or train it again with "
        "checkpoint.keep_stages true."
    )


def check_records(fork: Fork, old: RunRecord, new: RunRecord) -> None:
    """Check that files have not changed since the other run read them.

    Args:
        fork: Where the run starts.
        old: The record of the other run.
        new: The record of the run that starts there.

    Raises:
        RequestError: Naming the stage or benchmark whose file has changed.
    """
    pairs: list[tuple[str, object, object, tuple[str, ...]]] = [
        (f"stage '{name}'", old.stages.get(name), new.stages[name], ("steps", "manifest_digest"))
        for name in fork.stages
    ]
    pairs += [
        (f"benchmark '{name}'", old.benchmarks.get(name), found, ("digest", "prompts", "items"))
        for name, found in new.benchmarks.items()
    ]
    for what, found_before, found_now, entries in pairs:
        for entry in entries:
            before, now = getattr(found_before, entry, None), getattr(found_now, entry)
            if before != now:
                raise RequestError(
                    f"--from {fork.name}: {what} had {entry} {before}, it has {now} now: its files "
                    "have changed since. Restore them, or leave --from out to start from the base."
                )


def points_before(
    history: Mapping[str, Iterable[Metric]], step: int, stage_index: int
) -> list[Metric]:
    """Return the points of a run up to a boundary, as its fork has them.

    Args:
        history: The other run's points by key.
        step: The boundary.
        stage_index: Value of ``progress/stage`` at the boundary: the stage after it, or the last
            one, and so not the same in runs with different stages to come.
    """
    points: list[Metric] = []
    for key, metrics in history.items():
        for point in metrics:
            if point.step <= step:
                moved = key == "progress/stage" and point.step == step
                value = float(stage_index) if moved else point.value
                points.append(Metric(key, value, point.timestamp, point.step))
    return points


def copy_parent_record(fork: Fork, store: RunStore, logger: RunLogger, schedule: Schedule) -> None:
    """Copy the parent run's record into its fork, so that the fork is self-contained.

    That is its points, evaluations, answers and adapters up to the boundary. A repetition after a
    kill changes nothing.

    Args:
        fork: Where the run starts.
        store: The store of both runs.
        logger: The run that starts.
        schedule: Its schedule.
    """
    client, run_id = store.client, str(logger.run_id)
    data = client.get_run(fork.run_id).data
    for key, value in data.params.items():
        if key.startswith("items_between."):  # counted once a run, by InLoopEvaluation
            client.log_param(run_id, key, value)
    history = {key: client.get_metric_history(fork.run_id, key) for key in data.metrics}
    logger.log_points(points_before(history, fork.step, schedule.stage_of_step(fork.step)))
    copied = list(_artifacts(fork, store))
    for path in copied:
        with tempfile.TemporaryDirectory() as folder:
            local = client.download_artifacts(fork.run_id, path, folder)
            client.log_artifacts(run_id, local, path)
    for step in evaluated_steps(store, fork.run_id):
        if step <= fork.step:
            path = evaluation_path(step)
            client.log_text(run_id, store.artifact_text(fork.run_id, path), path)
    tables = json.loads(data.tags.get(TABLES_TAG, "[]"))
    kept = [table for table in tables if str(Path(table["path"]).parent) in copied]
    client.set_tag(run_id, TABLES_TAG, json.dumps(kept))


def _artifacts(fork: Fork, store: RunStore) -> Iterator[str]:
    """Yield the folders of answers and adapters up to the boundary."""
    for folder in store.client.list_artifacts(fork.run_id, "answers"):
        if int(folder.path.rpartition("_")[2]) <= fork.step:
            yield folder.path
    for name in fork.stages:
        yield f"stages/{name}"


def check_end(fork: Fork, store: RunStore, schedule: Schedule) -> None:
    """Check that a fork with no further stages can copy its parent's final scores.

    Raises:
        RequestError: If the parent has not been evaluated there.
    """
    if schedule.num_steps > fork.step:
        return
    if fork.step not in evaluated_steps(store, fork.run_id):
        raise RequestError(
            f"--from {fork.name}: the config trains nothing after stage '{fork.stages[-1]}', and "
            "the run has not been evaluated at its end. Resume that run first: its own config with "
            "--ckpt_path last."
        )


def place_checkpoints(fork: Fork, dirpath: Path, stamp: RunStamp, *, keep_stages: bool) -> Path:
    """Copy the parent's checkpoints into a run's folder, under its own stamp.

    ``last.ckpt`` is written last: if it exists, everything has been copied, and ``--ckpt_path
    last`` resumes from it.

    Args:
        fork: Where the run starts.
        dirpath: Folder of all runs' checkpoints.
        stamp: Of the run that starts.
        keep_stages: Whether stages' ends are kept.

    Returns:
        The run's ``last.ckpt``.
    """
    last = last_checkpoint(dirpath, stamp.run_id)
    if not keep_stages:
        _restamp(fork.checkpoint, last, stamp)
        return last
    for name in fork.stages:
        source = fork.checkpoint.with_name(f"{name}.ckpt")
        if source.exists():
            _restamp(source, stage_checkpoint(dirpath, stamp.run_id, name), stamp)
    link_or_copy(stage_checkpoint(dirpath, stamp.run_id, fork.stages[-1]), last)
    return last


def _restamp(source: Path, target: Path, stamp: RunStamp) -> None:
    checkpoint = read_checkpoint(source, option="--from:")
    AtomicCheckpointIO().save_checkpoint({**checkpoint, "sft_lab": stamp.as_dict()}, target)
