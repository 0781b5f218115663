"""Run one job of a study on any machine: start it, resume it, or find it finished."""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.errors import RESUME_HINT, BusyError
from sft_lab.runs.checkpoint import last_checkpoint
from sft_lab.runs.lock import run_lock
from sft_lab.runs.store import RunStore
from sft_lab.study.digests import code_digest

CELL_TAG = "sft_lab.cell"
PARENT_TAG = "mlflow.parentRunId"
REQUEST_WAS_WRONG, BUSY, OTHER_CODE = 2, os.EX_TEMPFAIL, os.EX_CONFIG
_LINUX_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_STOP_S = 120
_OTHER_CODE_REASON = (
    "{} has different code or package versions than the study was planned with; "
    "install the same on all machines and restart the study"
)


@dataclass(frozen=True)
class Job:
    """Everything a machine needs to train one run; paths are on a shared file system.

    Attributes:
        digest: The run's digest, by which the store finds its runs.
        code: Digest of the code the study was planned with; other code may not run the job.
        name: The run's name.
        config: File of the resolved config, with the run's name and tags.
        fork: ``RUN_ID@STAGE`` to start from, or None.
        tracking_uri: The store.
        dirpath: Folder of checkpoints.
        log: File to which the output of ``fit`` is appended.
        folder: The working directory.
        environment: Environment variables to set in addition to the machine's own.
    """

    digest: str
    code: str
    name: str
    config: Path
    fork: str | None
    tracking_uri: str
    dirpath: Path
    log: Path
    folder: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """The result of one attempt at a job.

    Attributes:
        digest: The run's digest.
        code: Exit code of ``fit``; ``BUSY`` if another process is training the run, ``OTHER_CODE``
            if the machine's code differs, None if the machine was lost.
        run_id: The finished run, or None.
        reason: Why there is no finished run, in one line.
    """

    digest: str
    code: int | None
    run_id: str | None
    reason: str = ""


def find_runs(store: RunStore, digest: str) -> list[Any]:
    """Return the runs of a digest, newest first."""
    return [run for run in store.runs() if run.data.tags.get(CELL_TAG) == digest]


def run_job(job: Job) -> Ended:
    """Train the job's run in a subprocess, which stops when this process does."""
    os.chdir(job.folder)
    os.environ.update(job.environment)  # the store may need some of it too
    if code_digest() != job.code:
        return Ended(job.digest, OTHER_CODE, None, _OTHER_CODE_REASON.format(socket.gethostname()))
    try:
        # Until `fit` has opened its run, only this lock shows other studies that it is in progress.
        with run_lock(job.dirpath / "cells" / job.digest, f"cell '{job.name}'"):
            return _run(job)
    except BusyError as fault:
        return Ended(job.digest, BUSY, None, str(fault))


def _run(job: Job) -> Ended:
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
    command = [sys.executable, "-m", "sft_lab", "fit", *fit_arguments(job, runs)]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_stop_with(os.getpid()),
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_STOP_S)
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


def _stop_with(parent: int) -> Any:
    """Return a ``preexec_fn`` that has the kernel stop the child when its parent dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_LINUX_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before prctl took effect
            os._exit(143)

    return prepare


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith(RESUME_HINT)]
    return said[-1] if said else "it printed nothing"
