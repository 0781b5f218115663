"""Start the runs of a study by forking a process that has imported everything they need.

An interpreter that starts afresh spends ten seconds on imports, a third of a short run. The server
is forked before the study has done anything but import: no thread has been started by then, no
random number drawn and no file read, so that a run in a fork equals one of a new interpreter.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import BinaryIO

from sft_lab.errors import Interrupted
from sft_lab.study.job import Ended, Job
from sft_lab.terminal import silence

STOP_S = 120
"""Seconds in which a run that is stopped can save a checkpoint."""
_LINUX_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_IMPORTED = (  # by every run, some of it late; a study itself imports most
    "sft_lab.launch.run",
    "sft_lab.analysis.conclusion",
    "mlflow.store.tracking.sqlalchemy_store",
    "peft",
)

Main = Callable[[list[str]], int]


def can_fork() -> bool:
    """Say whether a server may be started later: on Linux, before anything heavy is imported."""
    return sys.platform == "linux" and "torch" not in sys.modules


def thread_settings(cpus: int) -> dict[str, str]:
    """Return the variables by which libraries choose, when imported, their number of threads."""
    return {"OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus)}


def import_for_runs() -> bool:
    """Import what runs need; say whether they work in a fork afterwards.

    They do not on a machine with an accelerator, whose driver the imports initialise.
    """
    import torch

    from sft_lab.model.late_compile import import_bitsandbytes

    silence()
    import_bitsandbytes()
    for name in _IMPORTED:
        import_module(name)
    return not torch.accelerator.is_available()


class ForkServer:
    """A fork of this process that forks itself for every job; a context that ends it.

    The context is its address, a Unix socket in a folder that others cannot enter.

    Args:
        main: The command line, called with ``fit`` and its arguments.
    """

    def __init__(self, main: Main) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sft-lab-"))
        self._address = str(self._folder / "jobs")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address)
        listener.listen()
        gc.freeze()  # a collection would copy the pages that all forks share
        stop_server = stop_with(os.getpid(), signal.SIGKILL)
        self._process = _fork(lambda: _serve(listener, main), stop_server)
        listener.close()

    def __enter__(self) -> str:
        return self._address

    def __exit__(self, *_: object) -> None:
        os.kill(self._process, signal.SIGKILL)  # its jobs have ended, or been stopped
        os.waitpid(self._process, 0)
        shutil.rmtree(self._folder)


def run_in_fork(address: str, job: Job) -> Ended:
    """Have a server on this machine run a job; what interrupts this process stops the job."""
    lost = Ended(job.digest, None, None, "the process that starts runs has died")
    try:
        connection = Client(address, "AF_UNIX")
    except OSError:
        return lost
    with connection:
        try:
            connection.send(job)
            ended = connection.recv()
        except (EOFError, ConnectionError):
            return lost
        except BaseException:
            with contextlib.suppress(EOFError, OSError):
                connection.send("stop")
                if connection.poll(STOP_S + 10):
                    connection.recv()
            raise
    if isinstance(ended, Exception):
        raise ended
    assert isinstance(ended, Ended)
    return ended


def _serve(listener: socket.socket, main: Main) -> int:
    """Fork an attendant for each connection; the kernel ends this process with the study's."""
    os.setsid()  # Ctrl-C in a terminal is for the study, which then stops its jobs
    with open(os.devnull, "r+b") as null:
        for stream in (0, 1, 2):
            os.dup2(null.fileno(), stream)
    stop_attendant = stop_with(os.getpid())
    while True:
        accepted, _ = listener.accept()
        with contextlib.suppress(ChildProcessError):  # there is none that could have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        connection = Connection(accepted.detach())
        _fork(partial(_attend, connection, main), stop_attendant)
        connection.close()


def _attend(connection: Connection, main: Main) -> int:
    """Run the job that a connection brings, and send its result."""
    from sft_lab.study.run_job import run_job

    job: Job = connection.recv()
    try:
        ended: Ended | Exception = run_job(job, partial(ForkedFit, main, connection))
    except Interrupted as stop:
        ended = Ended(job.digest, stop.exit_code, None, "stopped")
    except Exception as fault:  # raised again by `run_in_fork`
        ended = fault
    with contextlib.suppress(OSError):  # the other end may be gone
        connection.send(ended)
    return 0


class ForkedFit:
    """``fit`` in a fork of this process, with the methods of ``subprocess.Popen`` that a job uses.

    Args:
        main: The command line.
        connection: What arrives there, or its end, asks to stop.
        arguments: Arguments of ``fit``.
        log: File that its output is appended to.
    """

    def __init__(
        self, main: Main, connection: Connection, arguments: Sequence[str], log: BinaryIO
    ) -> None:
        self._connection: Connection | None = connection
        self._pid = _fork(partial(_fit, main, arguments, log), stop_with(os.getpid()))
        self._ended = os.pidfd_open(self._pid)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; that of a signal is negative.

        Raises:
            Interrupted: If the connection asks to stop, once.
            subprocess.TimeoutExpired: If it has not ended after ``timeout`` seconds.
        """
        asked = [] if self._connection is None else [self._connection]
        ready = wait([self._ended, *asked], timeout)
        if self._ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if ready:
            self._connection = None
            raise Interrupted(signal.SIGTERM)
        raise subprocess.TimeoutExpired("fit", timeout or 0)

    def terminate(self) -> None:
        """Have it save a checkpoint and end."""
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self._pid, signal.SIGKILL)


def _fit(main: Main, arguments: Sequence[str], log: BinaryIO) -> int:
    """Do what ``python -m sft_lab fit`` does, from its arguments to the interpreter's end."""
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), "fit", *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    try:
        return main(sys.argv[1:])
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def _fork(run: Callable[[], int], begin: Callable[[], None]) -> int:
    """Run a function in a fork of this process, which then ends; return the fork's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        begin()
        code = run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:  # nothing of what called this may run twice
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def stop_with(parent: int, number: int = signal.SIGTERM) -> Callable[[], None]:
    """Return what a child calls to have the kernel send it a signal when its parent dies."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_LINUX_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent died before prctl took effect
            os._exit(143)

    return prepare
