"""Fork a run from the end of another run's stage: find it, and check that the config allows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.config.identity import contradiction, identity
from sft_lab.errors import RequestError
from sft_lab.runs.checkpoint import read_checkpoint, stage_checkpoint, stamp_of
from sft_lab.runs.evaluations import evaluated_steps
from sft_lab.runs.store import RunStore, parse_fork
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
        inputs: Digests of what the checkpoint was made from.
    """

    run_id: str
    stages: tuple[str, ...]
    step: int
    checkpoint: Path
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """``<run id>@<stage>``, which ``--from`` takes as well."""
        return f"{self.run_id}@{self.stages[-1]}"


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
    trained = store.config(run_id)
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
    inputs = stamp_of(checkpoint).inputs
    return Fork(run_id, names, int(checkpoint["global_step"]), path, inputs)


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
