"""Run one job of a study on any machine: start it, resume it, or find it finished."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sft_lab.errors import RESUME_HINT, BusyError
from sft_lab.runs.checkpoint import last_checkpoint
from sft_lab.runs.lock import run_lock
from sft_lab.runs.store import RunStore
from sft_lab.study.digests import code_digest
from sft_lab.study.fork_server import STOP_S, stop_with
from sft_lab.study.job import BUSY, CELL_TAG, OTHER_CODE, REQUEST_WAS_WRONG, Ended, Job

_OTHER_CODE_REASON = (
    "{} has different code or package versions than the study was planned with; "
    "install the same on all machines and restart the study"
)


def find_runs(store: RunStore, digest: str) -> list[Any]:
    """Return the runs of a digest, newest first."""
    return [run for run in store.runs() if run.data.tags.get(CELL_TAG) == digest]


class Fit(Protocol):
    """A process of ``fit``, such as a ``subprocess.Popen``."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code."""

    def terminate(self) -> None:
        """Have it save a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""


StartFit = Callable[[Sequence[str], BinaryIO], Fit]


def start_fit(arguments: Sequence[str], log: BinaryIO) -> Fit:
    """Start ``fit`` in a new interpreter, which is asked to stop when this process has died."""
    return subprocess.Popen(
        [sys.executable, "-m", "sft_lab", "fit", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=stop_with(os.getpid()),
    )


def run_job(job: Job, start: StartFit = start_fit) -> Ended:
    """Train the job's run in a process of its own, which stops when this one does."""
    os.chdir(job.folder)
    os.environ.update(job.environment)  # the store may need some of it too
    if code_digest() != job.code:
        return Ended(job.digest, OTHER_CODE, None, _OTHER_CODE_REASON.format(socket.gethostname()))
    try:
        # Until `fit` has opened its run, only this lock shows other studies that it is in progress.
        with run_lock(job.dirpath / "cells" / job.digest, f"cell '{job.name}'"):
            return _run(job, start)
    except BusyError as fault:
        return Ended(job.digest, BUSY, None, str(fault))


def _run(job: Job, start: StartFit) -> Ended:
    store = RunStore(job.tracking_uri)
    runs = find_runs(store, job.digest)
    finished = next((run for run in runs if run.info.status == "FINISHED"), None)
    if finished is not None:
        return Ended(job.digest, 0, finished.info.run_id)
    if running := [run.info.run_id for run in runs if run.info.status == "RUNNING"]:
        raise BusyError(
            f"run {running[0][:8]} of this cell is still running in another process; "
            "stop it, or set its status to KILLED in MLflow if its machine is gone"
        )
    arguments = fit_arguments(job, runs)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        command = [sys.executable, "-m", "sft_lab", "fit", *arguments]
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        process = start(arguments, log)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    done = next((r for r in find_runs(store, job.digest) if r.info.status == "FINISHED"), None)
    if code == 0 and done is not None:
        return Ended(job.digest, 0, done.info.run_id)
    if code == 0:
        reason = f"fit exited with 0, but {job.tracking_uri} holds no finished run of this cell"
        return Ended(job.digest, REQUEST_WAS_WRONG, None, reason)
    return Ended(job.digest, code, None, _last_line(job.log, begin))


def fit_arguments(job: Job, runs: list[Any]) -> list[str]:
    """Return the arguments of ``fit``.

    Args:
        job: The job.
        runs: Its unfinished runs, newest first; the newest one is resumed.
    """
    arguments = [f"--config={job.config}"]
    if runs:
        checkpoint = last_checkpoint(job.dirpath, runs[0].info.run_id)
        return [*arguments, f"--ckpt_path={checkpoint if checkpoint.exists() else 'last'}"]
    return [*arguments, f"--from={job.fork}"] if job.fork else arguments


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith(RESUME_HINT)]
    return said[-1] if said else "it printed nothing"
