"""Checkpoints that are whole or not there, and what a run says of itself in them."""

import errno
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from sft_lab.errors import RequestError

# What file systems answer that have no hard links, or no more for this file.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


@dataclass(frozen=True)
class RunStamp:
    """Which run a checkpoint belongs to.

    Attributes:
        run_id: The MLflow run.
        config: The resolved config, as in ``sft_lab.config.identity``.
    """

    run_id: str
    config: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the stamp as plain values."""
        return asdict(self)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, forces it to disk, and moves it into place.

    A kill at any moment leaves the old file or the new one. Lightning's own way writes to the
    system's temporary folder first, and a move from there need not be one step.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        _sync(target.parent)


def last_checkpoint(dirpath: Path, run_id: str) -> Path:
    """Return where a run keeps its checkpoint."""
    return dirpath / run_id / "last.ckpt"


def stage_checkpoint(dirpath: Path, run_id: str, stage_name: str) -> Path:
    """Return where a run keeps the checkpoint of a stage's end."""
    return dirpath / run_id / "stages" / f"{stage_name}.ckpt"


def link_or_copy(source: Path, target: Path) -> None:
    """Make a file be there under a second name, in one move: a hard link where the disk has them.

    Args:
        source: A file that is only ever replaced, never written into.
        target: The second name; what it stood for is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, part)
        _sync(part)
    os.replace(part, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_checkpoint(path: Path, option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint of the lab.

    Args:
        path: The file.
        option: What on the command line names it, for errors.

    Raises:
        RequestError: If there is none, it is damaged, or it is not the lab's.
    """
    if not path.is_file():
        raise RequestError(
            f"{option} {path}: there is no such file; give a .ckpt file, or last with fit."
        )
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        BadZipFile,
        pickle.UnpicklingError,
    ) as fault:
        raise RequestError(
            f"{option} {path} is damaged or no checkpoint ({str(fault).splitlines()[0][:120]}); "
            "take another one, or start the run anew."
        ) from fault
    if not isinstance(checkpoint, dict) or "sft_lab" not in checkpoint:
        raise RequestError(
            f"{option} {path} is not a checkpoint of this lab: it has no sft_lab entry."
        )
    return checkpoint


def stamp_of(checkpoint: Mapping[str, Any]) -> RunStamp:
    """Return which run a checkpoint belongs to."""
    return RunStamp(**checkpoint["sft_lab"])
