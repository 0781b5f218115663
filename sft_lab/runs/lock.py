"""Locks: a run, a cell or a study belongs to one process at a time."""

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import psutil

from sft_lab.errors import BusyError


@contextmanager
def run_lock(folder: Path, what: str | None = None) -> Iterator[None]:
    """Lock a run for this process until the block or the process ends.

    The process tag of a run is not enough: it is read and written in two steps, and another process
    may read it in between.

    Args:
        folder: The run's checkpoint folder, ``DIRPATH/<run id>``, or another one to lock.
        what: What is locked, for the error; by default the run that names the folder.

    Raises:
        BusyError: If another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / "lock") as file:
        try:
            # Not flock: loader processes that outlive a killed run would keep holding it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as fault:
            raise BusyError(
                f"{what or f'run {folder.name[:8]}'} is being trained by another process, which "
                f"holds {folder / 'lock'}; wait for it, or stop it first."
            ) from fault
        except OSError as fault:
            warnings.warn(
                f"{folder} cannot be locked ({fault.strerror}): make sure that no other process "
                "trains this run.",
                stacklevel=2,
            )
        yield


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Lock a file until the block ends, waiting for other processes; without locks, only try."""
    with _opened(path) as file:
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> TextIO:
    """Open a file to lock, never through a link that somebody has put in its place."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644), "w")


def this_process() -> str:
    """Return a name for this process that is unique over machines and time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_birth(os.getpid())}"


def is_elsewhere(process: str) -> bool:
    """Return whether the process of a tag was started on another machine."""
    return process.rsplit(":", 2)[0] != socket.gethostname()


def is_alive(process: str) -> bool:
    """Return whether the process of a tag still runs; one on another machine is assumed to."""
    if is_elsewhere(process):
        return True
    _, pid, birth = process.rsplit(":", 2)
    try:
        # A killed process that its parent has not waited for is a zombie: it is listed, but dead.
        is_zombie = psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        return not is_zombie and _birth(int(pid)) == birth
    except psutil.NoSuchProcess:
        return False


def _birth(pid: int) -> str:
    """Return what distinguishes a process from earlier ones with the same id on this machine.

    Not the time of day, which may be set while it runs: clock ticks since a boot with an id.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]
        # The name of the program, in parentheses, may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot}.{fields[19]}"
    except FileNotFoundError:  # no such process, or not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
