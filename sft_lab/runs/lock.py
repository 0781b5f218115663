"""A run, a cell or a study belongs to one process at a time."""

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
    """Hold a run for this process, until the block ends or the process does, however it does.

    The process tag of a run is read and written in two steps, between which another process may
    read it too; a lock is taken in one.

    Args:
        folder: The run's checkpoint folder, ``DIRPATH/<run id>``, or another that stands for it.
        what: What is held, for the error; by default the run of the folder's name.

    Raises:
        BusyError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            # Not flock: that would be held on by loader processes that outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as fault:
            raise BusyError(
                f"{what or f'run {folder.name[:8]}'} is being trained by another process, which "
                f"holds {folder / 'lock'}; wait for it, or stop it first."
            ) from fault
        except OSError as fault:
            warnings.warn(
                f"{folder} cannot be locked ({fault.strerror}): see to it that no other process "
                "goes on with this run.",
                stacklevel=2,
            )
        yield


def this_process() -> str:
    """Return the name of this process, the same on no machine and at no other time."""
    process = psutil.Process()
    # Process ids are used again; with the start time they are not.
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_elsewhere(process: str) -> bool:
    """Say whether the process of a tag was started on another machine."""
    return process.rsplit(":", 2)[0] != socket.gethostname()


def is_alive(process: str) -> bool:
    """Say whether the process of a tag still runs; one on another machine is taken to."""
    if is_elsewhere(process):
        return True
    _, pid, created = process.rsplit(":", 2)
    try:
        found = psutil.Process(int(pid))
        # A killed process that its parent has not asked after is a zombie: it is there, and dead.
        # The start time is reckoned from the clock, which may have been set a little meanwhile.
        return (
            found.status() != psutil.STATUS_ZOMBIE
            and abs(found.create_time() - float(created)) < 60
        )
    except psutil.NoSuchProcess:
        return False
