"""What a run takes over from the run it starts from, so that its record is whole in itself."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sft_lab.checkpoint import (
    AtomicCheckpointIO,
    RunStamp,
    last_checkpoint,
    link_or_copy,
    read_checkpoint,
    stage_checkpoint,
)
from sft_lab.errors import RequestError
from sft_lab.fork import Fork, is_measured, points_before
from sft_lab.schedule import Schedule
from sft_lab.tracking import TABLES_TAG, RunLogger, RunStore


def take_over(fork: Fork, store: RunStore, logger: RunLogger, schedule: Schedule) -> None:
    """Copy points, answers and adapters up to the boundary; safe to repeat after a kill.

    Args:
        fork: Where the run starts.
        store: The store of both runs.
        logger: The run that starts.
        schedule: Its course.
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
    tables = json.loads(data.tags.get(TABLES_TAG, "[]"))
    kept = [table for table in tables if str(Path(table["path"]).parent) in copied]
    client.set_tag(run_id, TABLES_TAG, json.dumps(kept))


def _artifacts(fork: Fork, store: RunStore) -> Iterator[str]:
    """Give the folders of answers and adapters up to the boundary."""
    for folder in store.client.list_artifacts(fork.run_id, "answers"):
        if int(folder.path.rpartition("_")[2]) <= fork.step:
            yield folder.path
    for name in fork.stages:
        yield f"stages/{name}"


def check_end(fork: Fork, store: RunStore, schedule: Schedule) -> None:
    """Look that a run which trains nothing behind the boundary can take its last scores over.

    Raises:
        RequestError: If the other run has not been measured there.
    """
    if schedule.num_steps > fork.step:
        return
    metrics = store.client.get_run(fork.run_id).data.metrics
    points = [p for key in metrics for p in store.client.get_metric_history(fork.run_id, key)]
    if not is_measured(points, fork.step):
        raise RequestError(
            f"--from {fork.name}: the config trains nothing behind stage '{fork.stages[-1]}', and "
            "the run has not been measured at its end. Go on with that run first: its own config "
            "with --ckpt_path last."
        )


def place_checkpoints(fork: Fork, dirpath: Path, stamp: RunStamp, *, keep_stages: bool) -> Path:
    """Put the other run's checkpoints into a run's folder, under its own stamp.

    ``last.ckpt`` comes last: where it is, everything has been taken over, and ``--ckpt_path last``
    goes on from it.

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
