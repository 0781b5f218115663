"""Copy a parent run's record and checkpoints into its fork, which is then self-contained."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mlflow.entities import Metric

from sft_lab.runs.checkpoint import (
    AtomicCheckpointIO,
    RunStamp,
    last_checkpoint,
    link_or_copy,
    read_checkpoint,
    stage_checkpoint,
)
from sft_lab.runs.evaluations import evaluated_steps, evaluation_path
from sft_lab.runs.fork import Fork
from sft_lab.runs.logger import RunLogger
from sft_lab.runs.store import TABLES_TAG, RunStore
from sft_lab.training.schedule import Schedule


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
