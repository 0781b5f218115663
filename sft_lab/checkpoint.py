"""Checkpoints that are whole or not there, and what a run says of itself in them."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from sft_lab.errors import RequestError


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
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def last_checkpoint(dirpath: Path, run_id: str) -> Path:
    """Return where a run keeps its checkpoint."""
    return dirpath / run_id / "last.ckpt"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of the lab.

    Raises:
        RequestError: If there is none, it is damaged, or it is not the lab's.
    """
    if not path.is_file():
        raise RequestError(
            f"--ckpt_path {path}: there is no such file; give a .ckpt file, or last with fit."
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
            f"--ckpt_path {path} is damaged or no checkpoint ({str(fault).splitlines()[0][:120]}); "
            "take another one, or start the run anew."
        ) from fault
    if not isinstance(checkpoint, dict) or "sft_lab" not in checkpoint:
        raise RequestError(
            f"--ckpt_path {path} is not a checkpoint of this lab: it has no sft_lab entry."
        )
    return checkpoint


def stamp_of(checkpoint: Mapping[str, Any]) -> RunStamp:
    """Return which run a checkpoint belongs to."""
    return RunStamp(**checkpoint["sft_lab"])
