import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.errors import RequestError
from sft_lab.runs.accidents import explain
from sft_lab.runs.checkpoint import AtomicCheckpointIO, RunStamp, read_checkpoint

STAMP = RunStamp("1f", {}).as_dict()


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "run" / "last.ckpt"
    io.save_checkpoint({"sft_lab": STAMP, "step": 1}, path)
    original = torch.save

    def half(checkpoint: Any, file: Any) -> None:
        original(checkpoint, file)
        file.truncate(100)
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:  # as torch does
            raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left on device") as caught:
        io.save_checkpoint({"sft_lab": STAMP, "step": 2}, path)
    assert str(explain(caught.value)).startswith(f"no space is left on the disk of {path.parent}: ")
    assert read_checkpoint(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for step in (1, 2):
        io.save_checkpoint({"sft_lab": STAMP, "step": step}, path)
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


def test_every_flipped_bit_that_matters_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved = {"sft_lab": STAMP, "weight": torch.arange(4.0)}
    AtomicCheckpointIO().save_checkpoint(saved, path)
    content = path.read_bytes()
    noticed = 0
    for bit in range(0, 8 * len(content), 97):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = read_checkpoint(path)
        except RequestError as fault:
            assert "last.ckpt is damaged or not a checkpoint" in str(fault)  # noqa: PT017
            noticed += 1
        else:  # padding, or a date of the archive
            assert torch.equal(found["weight"], saved["weight"])
            assert found["sft_lab"] == STAMP
    assert noticed > 20


@pytest.mark.parametrize(
    "stamp",
    [None, {}, 7, {"run_id": 7, "config": {}}, {"run_id": "1f", "config": {}, "of": "tomorrow"}],
)
def test_a_foreign_stamp_is_refused(tmp_path: Path, stamp: Any) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"sft_lab": stamp, "callbacks": {}}, path)
    with pytest.raises(RequestError, match=r"last\.ckpt is not a checkpoint of this lab"):
        read_checkpoint(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_model_is_refused(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(RequestError, match="not a checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "last.ckpt"
    victim.write_text("mine")
    for link in (path, tmp_path / "last.ckpt.part"):
        link.symlink_to(victim)
    AtomicCheckpointIO().save_checkpoint({"sft_lab": STAMP}, path)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
