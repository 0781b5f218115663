from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.errors import RequestError
from sft_lab.runs.checkpoint import AtomicCheckpointIO, read_checkpoint


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "run" / "last.ckpt"
    io.save_checkpoint({"sft_lab": {}, "step": 1}, path)
    original = torch.save

    def half(checkpoint: Any, file: Any) -> None:
        original(checkpoint, file)
        file.truncate(100)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"sft_lab": {}, "step": 2}, path)
    assert read_checkpoint(path)["step"] == 1


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for step in (1, 2):
        io.save_checkpoint({"sft_lab": {}, "step": step}, path)
    assert read_checkpoint(path)["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint at all", b"\x80\x02." * 40])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"last\.ckpt is damaged or not a checkpoint"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"sft_lab": Bomb()}, tmp_path / "last.ckpt")
    with pytest.raises(RequestError, match="is damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "harm").exists()
