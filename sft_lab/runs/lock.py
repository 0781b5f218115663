"""Locks: a run, a cell or a study belongs to one process at a time."""

import fcntl
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sft_lab.errors import BusyError


@contextmanager
def run_lock(folder: Path, what: str | None = None) -> Iterator[None]:
    """Lock a run for this process until the block ends, or the process in any way.

    The process tag of a run does not do: it is read and written in two steps, and another process
    may read it in between.

    Args:
        folder: The run's checkpoint folder, ``DIRPATH/<run id>``, or another one to lock.
        what: What is locked, for the error; by default the run that names the folder.

    Raises:
        BusyError: If another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
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


def this_process() -> str:
    """Return a name for this process that is unique over machines and time."""
    process = psutil.Process()
    # Process ids are reused; with the start time they are unique.
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_elsewhere(process: str) -> bool:
    """Return whether the process of a tag was started on another machine."""
    return process.rsplit(":", 2)[0] != socket.gethostname()


def is_alive(process: str) -> bool:
    """Return whether the process of a tag still runs; one on another machine is assumed to."""
    if is_elsewhere(process):
        return True
    _, pid, created = process.rsplit(":", 2)
    try:
        found = psutil.Process(int(pid))
        # A killed process that its parent has not waited for is a zombie: it is listed, but dead.
        # The start time comes from the clock, which may have been adjusted a little since.
        return (
            found.status() != psutil.STATUS_ZOMBIE
            and abs(found.create_time() - float(created)) < 60
        )
    except psutil.NoSuchProcess:
        return False
