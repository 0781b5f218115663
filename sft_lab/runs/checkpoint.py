"""Checkpoints, written atomically and stamped with their run."""

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.paths import new_file

# errno values for "hard links unsupported or exhausted".
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


@dataclass(frozen=True)
class RunStamp:
    """Which run a checkpoint belongs to.

    Attributes:
        run_id: The MLflow run.
        config: The resolved config, as in ``sft_lab.config.identity``.
        inputs: Digests of what the run is made from, as in ``sft_lab.runs.inputs``.
        points: Points that the store held when the checkpoint was written.
    """

    run_id: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    points: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the stamp as plain values."""
        return asdict(self)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its target, syncs it to disk, and moves it into place.

    A kill at any moment leaves the old file or the new one. Lightning writes to the system's
    temporary folder first, and a move from there to another file system is not atomic.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        try:
            with new_file(part) as file:
                torch.save(checkpoint, file)  # with a CRC-32 of every tensor
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            _sync(target.parent)
        except (OSError, RuntimeError) as fault:
            part.unlink(missing_ok=True)
            # torch.save raises its own error while it handles the disk's, which names no file.
            cause = fault if isinstance(fault, OSError) else fault.__context__
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(part)) from fault
            raise


def last_checkpoint(dirpath: Path, run_id: str) -> Path:
    """Return the path of a run's last checkpoint."""
    return dirpath / run_id / "last.ckpt"


def stage_checkpoint(dirpath: Path, run_id: str, stage_name: str) -> Path:
    """Return the path of a run's checkpoint at the end of a stage."""
    return dirpath / run_id / "stages" / f"{stage_name}.ckpt"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name atomically: by a hard link, or a copy where there are none.

    Args:
        source: A file that is only ever replaced, never modified.
        target: The second name; an existing file is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)  # fails where anything is
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        with source.open("rb") as old, new_file(part) as new:
            shutil.copyfileobj(old, new)
        _sync(part)
    os.replace(part, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Sync a file or a folder to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_checkpoint(path: Path, option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint of the lab.

    Args:
        path: The file.
        option: The command-line option that names it, for errors.

    Raises:
        RequestError: If it does not exist, a bit of it has changed, or it is not the lab's.
    """
    if not path.is_file():
        raise RequestError(f"{option} {path}: no such file; give a .ckpt file, or last with fit.")
    try:
        with ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise BadZipFile(f"{damaged} does not have its checksum")
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as fault:  # a damaged or foreign pickle raises anything
        reason = (str(fault) or type(fault).__name__).splitlines()[0][:120]
        raise RequestError(
            f"{option} {path} is damaged or not a checkpoint ({reason}); name another one, or "
            "start a new run."
        ) from fault
    if not isinstance(checkpoint, dict) or not _is_stamp(checkpoint.get("sft_lab")):
        raise RequestError(
            f"{option} {path} is not a checkpoint of this lab, or of another version of it: its "
            "sft_lab entry is missing or unknown."
        )
    return checkpoint


def _is_stamp(found: object) -> bool:
    try:
        stamp = RunStamp(**found)  # type: ignore[arg-type]  # checked by the call
    except TypeError:
        return False
    are_plain = isinstance(stamp.run_id, str) and isinstance(stamp.points, int)
    return are_plain and all(
        isinstance(content, Mapping) for content in (stamp.config, stamp.inputs)
    )


def stamp_of(checkpoint: Mapping[str, Any]) -> RunStamp:
    """Return which run a checkpoint belongs to."""
    return RunStamp(**checkpoint["sft_lab"])
