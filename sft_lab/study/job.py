"""One run of a study on whatever machine it falls to: begun, gone on with, or found finished."""

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

from sft_lab.errors import BusyError
from sft_lab.runs.checkpoint import last_checkpoint
from sft_lab.runs.lock import run_lock
from sft_lab.runs.store import RunStore
from sft_lab.study.digests import code_digest

CELL_TAG = "sft_lab.cell"
PARENT_TAG = "mlflow.parentRunId"
REQUEST_WAS_WRONG, BUSY, OTHER_CODE = 2, os.EX_TEMPFAIL, os.EX_CONFIG
_LINUX_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_STOP_S = 120
_HAS_OTHER_CODE = (
    "{} has another code, or other versions of its packages, than the study was planned with; "
    "put all machines on one, and start the study anew"
)


@dataclass(frozen=True)
class Job:
    """What a machine needs to know to fill a cell; paths are those of a shared file system.

    Attributes:
        digest: The run's digest, by which runs are found in the store.
        code: Digest of the code that it was planned with, the only one that may run it.
        name: The run's name.
        config: Its resolved config, with the name and tags that the run gets.
        fork: ``RUN_ID@STAGE`` to start from, or None.
        tracking_uri: The store.
        dirpath: Folder of checkpoints.
        log: File for what ``fit`` prints; it is added to.
        folder: The folder to work in.
        environment: Environment variables beside those of the machine.
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
    """How an attempt at a job ended.

    Attributes:
        digest: The run's digest.
        code: Exit code of ``fit``; ``BUSY`` where another process is at it, ``OTHER_CODE`` where
            the machine may not run it, None where it was lost.
        run_id: The finished run; None where there is none.
        reason: Why there is none, in a line.
    """

    digest: str
    code: int | None
    run_id: str | None
    reason: str = ""


def find_runs(store: RunStore, digest: str) -> list[Any]:
    """Return the runs of a digest, newest first."""
    return [run for run in store.runs() if run.data.tags.get(CELL_TAG) == digest]


def run_job(job: Job) -> Ended:
    """Fill a cell in a process of its own, which stops when this one does."""
    os.chdir(job.folder)
    os.environ.update(job.environment)  # the store may need some of it too
    if code_digest() != job.code:
        return Ended(job.digest, OTHER_CODE, None, _HAS_OTHER_CODE.format(socket.gethostname()))
    try:
        # Until `fit` has opened its run, nothing else tells another study that it is at work.
        with run_lock(job.dirpath / "cells" / job.digest, f"cell '{job.name}'"):
            return _fill(job)
    except BusyError as fault:
        return Ended(job.digest, BUSY, None, str(fault))


def _fill(job: Job) -> Ended:
    store = RunStore(job.tracking_uri)
    runs = find_runs(store, job.digest)
    finished = next((run for run in runs if run.info.status == "FINISHED"), None)
    if finished is not None:
        return Ended(job.digest, 0, finished.info.run_id)
    if running := [run.info.run_id for run in runs if run.info.status == "RUNNING"]:
        raise BusyError(
            f"run {running[0][:8]} of this cell still runs, in another process; "
            "stop it, or mark it killed in MLflow if its machine is gone"
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
        said = f"fit has ended, but {job.tracking_uri} holds no finished run of it"
        return Ended(job.digest, REQUEST_WAS_WRONG, None, said)
    return Ended(job.digest, code, None, _last_line(job.log, begin))


def fit_arguments(job: Job, runs: list[Any]) -> list[str]:
    """Return the arguments of ``fit``.

    Args:
        job: What is asked for.
        runs: Runs of it that have not finished, newest first: the newest is gone on with.
    """
    arguments = [f"--config={job.config}"]
    if runs:
        checkpoint = last_checkpoint(job.dirpath, runs[0].info.run_id)
        return [*arguments, f"--ckpt_path={checkpoint if checkpoint.exists() else 'last'}"]
    return [*arguments, f"--from={job.fork}"] if job.fork else arguments


def _stop_with(parent: int) -> Any:
    """Return what a child does at its start to be told to stop when its parent dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_LINUX_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was asked
            os._exit(143)

    return prepare


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
