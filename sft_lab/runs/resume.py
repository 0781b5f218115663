"""Resume a run: find it and its checkpoint, and check that the config still fits."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_lab.config.identity import changed_keys, check_resumable, digest, identity
from sft_lab.errors import BusyError, RequestError
from sft_lab.runs.checkpoint import last_checkpoint, read_checkpoint, stamp_of
from sft_lab.runs.fork import FORK_TAG
from sft_lab.runs.inputs import BASE, TOKENIZER, check_inputs
from sft_lab.runs.store import DIGEST_TAG, RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """A run to resume.

    Attributes:
        run_id: The MLflow run.
        checkpoint: Its checkpoint; None if it was stopped before it wrote one.
        forked_from: ``RUN@STAGE`` if it was to start from there and was stopped before.
        inputs: Digests of what the checkpoint was made from.
        trained: The stages it has trained a step of.
        points: Points that the store held when the checkpoint was written.
    """

    run_id: str
    checkpoint: Path | None
    forked_from: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    points: int = 0


def resume_last(tracking_uri: str, dirpath: Path, config: Mapping[str, Any]) -> Resume:
    """Return the newest unfinished run of the same config.

    Raises:
        RequestError: If there is none; names a key in which the newest one differs.
    """
    store = RunStore(tracking_uri)
    runs = [run for run in store.unfinished() if run.data.tags.get("command") == "fit"]
    for run in runs:
        if run.data.tags[DIGEST_TAG] == digest(config):
            checkpoint = last_checkpoint(dirpath, run.info.run_id)
            if not checkpoint.exists():
                if run.data.metrics.get("progress/samples", 0) > 0:
                    log.warning(
                        f"{checkpoint} is missing, so the run starts from its first step again."
                    )
                return Resume(run.info.run_id, None, run.data.tags.get(FORK_TAG))
            return resume_path(checkpoint, config)
    message = f"--ckpt_path last: {tracking_uri} holds no unfinished run of this config."
    if runs:
        newest = runs[0]
        trained = store.config(newest.info.run_id)
        changes = changed_keys(identity(trained), identity(config))
        if changes:
            key, before, now = changes[0]
            name = f"{newest.info.run_name} ({newest.info.run_id[:8]})"
            message += f" The newest, {name}, has {key} {before}, not {now}."
            checkpoint = last_checkpoint(dirpath, newest.info.run_id)
            if checkpoint.exists():
                message += f" To change a stage to come, name its checkpoint: {checkpoint}."
    raise RequestError(f"{message} Leave --ckpt_path out to start a new run.")


def resume_path(path: Path, config: Mapping[str, Any]) -> Resume:
    """Return the run of a checkpoint, with the config checked against it.

    Raises:
        RequestError: If the checkpoint is damaged, or the config contradicts what it has trained.
    """
    checkpoint = read_checkpoint(path)
    stamp = stamp_of(checkpoint)
    if path.parent.name == "stages":
        raise RequestError(
            f"--ckpt_path {path} is kept for other runs to start from; its own run went further. "
            f"Start one by --from {stamp.run_id[:8]}@{path.stem}, or resume from last.ckpt."
        )
    started = checkpoint["callbacks"]["StageScheduler"]["trained_stage"] + 1
    check_resumable(stamp.config, identity(config), started_stages=started)
    trained = tuple(list(stamp.config["data"]["stages"])[:started])
    return Resume(stamp.run_id, path, None, stamp.inputs, trained, stamp.points)


def check_run(tracking_uri: str, resume: Resume) -> None:
    """Check that the run of a checkpoint is in the store, and that no other process trains it.

    Raises:
        RequestError: If it is not in the store.
        BusyError: If it is running in another process.
    """
    runs = {run.info.run_id: run for run in RunStore(tracking_uri).runs()}
    run = runs.get(resume.run_id)
    asked = f"--ckpt_path {resume.checkpoint or 'last'}"
    if run is None:
        raise RequestError(
            f"{asked}: its run {resume.run_id[:8]} is not in "
            f"{tracking_uri}; set trainer.logger.init_args.tracking_uri to the store that holds it."
        )
    if run.info.status == "RUNNING":
        raise BusyError(f"{asked}: its run {resume.run_id[:8]} is still running; stop it first.")


def check_model(path: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Check that a checkpoint's weights belong to the model of a config.

    Benchmarks and rows may differ: the scores are a run of their own, with its own record.

    Args:
        path: The checkpoint.
        config: The config.
        inputs: Digests of what its model is made from now.

    Raises:
        RequestError: If the checkpoint is damaged, or was trained on another model.
    """
    stamp = stamp_of(read_checkpoint(path))
    trained, asked = stamp.config["model"], identity(config)["model"]
    for key in ("base", "quantization", "lora", "peft"):
        if trained[key] != asked[key]:
            raise RequestError(
                f"--ckpt_path {path} was trained with model.{key} {trained[key]}, "
                f"the config says {asked[key]}; use the config of the run."
            )
    check_inputs(stamp.inputs, inputs, f"--ckpt_path {path}", only=(BASE, TOKENIZER))
