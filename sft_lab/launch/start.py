"""Decide where a run starts: from nothing, from its own checkpoint, or from another run's stage."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sft_lab.errors import RequestError
from sft_lab.launch.run_config import RunConfig
from sft_lab.paths import make_folder
from sft_lab.runs.fork import Fork, find_fork
from sft_lab.runs.lock import run_lock
from sft_lab.runs.resume import Resume, check_run, resume_last, resume_path
from sft_lab.runs.store import RunStore


@dataclass(frozen=True)
class Start:
    """The point that a run starts from.

    Attributes:
        resume: The run to resume, or None.
        fork: The end of another run's stage to start from, or None.
    """

    resume: Resume | None = None
    fork: Fork | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The run's own checkpoint to resume from; None where it has written none yet."""
        return None if self.resume is None else self.resume.checkpoint


def choose_start(config: RunConfig, held: ExitStack) -> Start:
    """Find the run to resume, or the stage's end to start from.

    Args:
        config: The parsed config of ``fit``.
        held: Receives the lock of a run that is resumed.

    Raises:
        RequestError: If the run, stage or checkpoint is unknown, or the config contradicts it.
    """
    dirpath = Path(config.plain["checkpoint"]["dirpath"])
    origin = config.fork_from
    resume: Resume | None = None
    if config.ckpt_path is not None and origin is not None:
        raise RequestError(
            f"--from {origin} starts a new run, --ckpt_path {config.ckpt_path} resumes one; "
            "leave one of them out."
        )
    if config.ckpt_path is not None:
        resume = (
            resume_last(config.tracking_uri, dirpath, config.plain)
            if config.ckpt_path == "last"
            else resume_path(Path(config.ckpt_path), config.plain)
        )
        make_folder("checkpoint.dirpath", dirpath)
        held.enter_context(run_lock(dirpath / resume.run_id))
        check_run(config.tracking_uri, resume)
        origin = resume.forked_from
    if origin is None:
        return Start(resume)
    store = RunStore(config.tracking_uri)
    return Start(resume, find_fork(store, dirpath, origin, config.plain))
