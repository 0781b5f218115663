"""Failures of machine, disk and server, explained in one line each."""

import errno
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseError
from mlflow.exceptions import MlflowException

from sft_lab.runs.accidents import explain


class OutOfMemoryError(RuntimeError):
    """As torch's, which needs a GPU to be raised."""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.ENOSPC, "full", "/lab/a/x.part"), "no space is left on the disk of /lab/a:"),
        (OSError(errno.EDQUOT, "quota", "in", None, "/lab/b/x"), "on the disk of /lab/b:"),
        (OSError(errno.ENOSPC, "full"), "SFT_LAB_CACHE"),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), "no space is"),
        (MlflowException("(sqlite3.OperationalError) database is locked"), "locked by another"),
        (MlflowException("(sqlite3.DatabaseError) image is malformed"), "damaged SQLite"),
        (MlflowException("attempt to write a readonly database"), "cannot be written"),
        (MlflowException("API request failed: Max retries exceeded with url"), "two minutes"),
        (MlflowException("API request to endpoint was successful but the"), "is not MLflow"),
        (MlflowException("INTERNAL_ERROR: Response: {'error': 7}"), "is not MLflow"),
        (ParseError("Failed to parse runs field: 5."), "is not MLflow"),
        (MlflowException("The run 1f must be in the 'active' state."), "deleted in MLflow"),
        (OutOfMemoryError("CUDA out of memory. Tried to"), "out of GPU memory. Lower data.mic"),
        (MemoryError(), "out of memory, or of address space"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you"), "ulimit -v"),
        (RuntimeError("could not create a primitive"), "ulimit -v"),
        (ImportError("x.so: failed to map segment from shared object"), "ulimit -v"),
        (RuntimeError("unable to open shared memory object </torch_1> in"), "/dev/shm"),
        (RuntimeError("DataLoader worker (pid(s) 7) is killed by signal: Killed."), "was killed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
                      "that dataloader's workers are out of shared memory."), "num_workers to 0"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)  # fmt: skip
def test_an_accident_has_one_line(fault: Exception, said: str) -> None:
    line = explain(fault)
    assert line is not None
    assert said in line
    assert "\n" not in line
    outer = KeyError("while it was handled")
    outer.__context__ = fault
    assert explain(outer) == line


def test_a_disk_that_is_lost_is_named() -> None:
    line = explain(OSError(errno.ESTALE, "Stale file handle", "/nfs/mlruns/last.ckpt.part"))
    assert line == ("/nfs/mlruns/last.ckpt.part: Stale file handle. Check the disk or its mount.")
    line = explain(OSError(errno.ENAMETOOLONG, "File name too long", "o" * 300))
    assert line == f"{'o' * 60}...: the name is too long. Give a shorter one."
    assert "ulimit -n" in str(explain(OSError(errno.EMFILE, "Too many open files", "x")))


def test_a_removed_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path / "lab")
    (tmp_path / "lab").rmdir()
    fault = FileNotFoundError(errno.ENOENT, "No such file or directory", "mlruns/x.part")
    assert "the working directory has been removed" in str(explain(fault))


def test_a_fault_of_the_code_is_not_explained(tmp_path: Path) -> None:
    for fault in (RuntimeError("shape mismatch"), OSError(errno.ENOENT, "gone"), KeyError("x")):
        assert explain(fault) is None
