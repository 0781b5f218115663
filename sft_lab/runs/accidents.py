"""Explain in one line what a machine, a disk or a server does to a run; imports no library."""

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sft_lab.errors import RunError
from sft_lab.paths import cache_dir

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOST = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ENODEV, errno.ENXIO)
_FULL_BYTES = 16 * 1024**2  # less is free where a write has just failed
_FEWER_BYTES = (
    "Lower data.micro_batch_size, set model.gradient_checkpointing true, or give the run more."
)
_SHARED_MEMORY = (
    "loader processes need shared memory, /dev/shm, and there is none or too little. Set "
    "data.num_workers to 0, or give the container some (docker run --shm-size 1g)."
)
_BY_TEXT = {
    r"unable to (open|allocate|write to|mmap).*shared memory|insufficient shared memory": (
        _SHARED_MEMORY
    ),
    r"shared memory|/torch_\d+.*No such file": _SHARED_MEMORY,
    r"worker \(pid.*killed by signal: Killed": (
        "a loader process was killed, as a machine out of memory does. Set data.num_workers to 0, "
        "or give the run more memory."
    ),
    r"(can't|annot) allocate memory|not enough memory|failed to map|not create a primitive": (
        f"out of memory, or of address space (ulimit -v). {_FEWER_BYTES}"
    ),
    r"can't start new thread|Resource temporarily unavailable": (
        "no further thread or process can be started here: a limit on processes (ulimit -u) or on "
        "address space (ulimit -v). Raise it."
    ),
}
_STORE_BY_TEXT = {
    r"database is locked": (
        "the MLflow store is locked by another process, for longer than SQLite waits. Stop that "
        "process, or record to another store (trainer.logger.init_args.tracking_uri)."
    ),
    r"malformed|not a database": (
        "the MLflow store is a damaged SQLite database. Restore a copy, or recover its rows "
        "(sqlite3 FILE .recover), before the run is resumed."
    ),
    r"readonly database|unable to open database file|disk I/O error": (
        "the MLflow store cannot be written: its file or folder is read-only, gone, or on a disk "
        "with faults. Check it."
    ),
    r"Max retries exceeded|Connection aborted|Connection refused|Read timed out|too many 5\d\d": (
        "the MLflow server has not answered for two minutes. Start it again."
    ),
    r"API request to |INTERNAL_ERROR: Response|Failed to parse \w+ field": (
        "what answers at the MLflow server's address is not MLflow, or not MLflow alone. Check "
        "the address, and what is between (a proxy, a login)."
    ),
    r"is in the deleted state|must be in the 'active' state|No Experiment with id": (
        "the experiment or the run has been deleted in MLflow. Restore it (mlflow experiments "
        "restore, mlflow runs restore)."
    ),
}


_LOST_RANK = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (closed|reset) by peer|TCPStore|Broken pipe", re.IGNORECASE
)


def is_of_ranks(fault: BaseException) -> bool:
    """Return whether an exception only says that another rank of the run is lost or late."""
    return isinstance(fault, RuntimeError) and _LOST_RANK.search(str(fault)) is not None


def explain(fault: BaseException) -> str | None:
    """Return what has happened and what to do, in one line; None for a fault of the code.

    Args:
        fault: An exception; its causes and contexts are examined as well.
    """
    chain = list(_chain(fault))
    for found in chain:
        if isinstance(found, RunError):
            return str(found)
    for found in chain:
        if (line := _explain(found)) is not None:
            return line
    return None


def is_of_store(fault: BaseException) -> bool:
    """Return whether the store, or a library that reads it, has raised a fault or its cause."""
    return any(map(_is_of_store, _chain(fault)))


def _is_of_store(fault: BaseException) -> bool:
    modules = ("mlflow.", "sqlalchemy.", "sqlite3", "google.protobuf.")
    return type(fault).__module__.startswith(modules)


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__cause__ or fault.__context__


def _explain(fault: BaseException) -> str | None:
    text = " ".join(str(fault).split())
    if (isinstance(fault, OSError) and fault.errno in _FULL) or "disk is full" in text:
        return _disk_full(fault)
    if isinstance(fault, OSError):
        if fault.errno in _LOST:
            return f"{fault.filename or 'a file'}: {fault.strerror}. Check the disk or its mount."
        if fault.errno == errno.ENAMETOOLONG:
            return f"{str(fault.filename)[:60]}...: the name is too long. Give a shorter one."
        if fault.errno == errno.EMFILE:
            return "too many open files. Raise the limit (ulimit -n)."
        if fault.errno == errno.ENOENT and not _has_folder():
            return "the working directory has been removed, and relative paths with it. Restore it."
    if type(fault).__name__ == "OutOfMemoryError":
        return f"out of GPU memory. {_FEWER_BYTES}"
    if isinstance(fault, MemoryError):
        return f"out of memory, or of address space (ulimit -v). {_FEWER_BYTES}"
    if _is_of_store(fault):
        return _first(_STORE_BY_TEXT, text)
    if isinstance(fault, RuntimeError | OSError | ImportError):
        return _first(_BY_TEXT, text)
    return None


def _first(lines: dict[str, str], text: str) -> str | None:
    return next((line for pattern, line in lines.items() if re.search(pattern, text)), None)


def _disk_full(fault: BaseException) -> str:
    name = getattr(fault, "filename2", None) or getattr(fault, "filename", None)
    where = str(Path(str(name)).parent) if name else _full_folders()
    return (
        f"no space is left on the disk of {where}: the last write has failed, what was written "
        "before is whole. Free some (TMPDIR and SFT_LAB_CACHE may be elsewhere)."
    )


def _has_folder() -> bool:
    try:
        return Path.cwd().exists()
    except FileNotFoundError:
        return False


def _full_folders() -> str:
    folders = [Path("mlruns"), Path(tempfile.gettempdir()), cache_dir()]
    full = [
        str(folder)
        for folder in folders
        if folder.exists() and shutil.disk_usage(folder).free < _FULL_BYTES
    ]
    return ", ".join(full) or " or ".join(map(str, folders))
