import os
from pathlib import Path

import pytest
from lock_holder import held
from tiny_lab import Lab

from sft_lab.errors import RequestError
from sft_lab.runs.lock import run_lock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "1f00000000000000"


def test_a_run_belongs_to_one_process_until_that_is_gone(folder: Path) -> None:
    with held(folder) as holder:
        with (
            pytest.raises(RequestError, match="run 1f000000 is being trained by another process"),
            run_lock(folder),
        ):
            pass
        holder.kill()
        holder.wait()
        with run_lock(folder):
            pass


@pytest.mark.slow
def test_two_processes_cannot_go_on_with_one_run(stopped_lab: Lab) -> None:
    lab = stopped_lab
    stop = ("--trainer.callbacks+=stopper.Stop", "--trainer.callbacks.step=3")
    with pytest.raises(RuntimeError, match="stopped by the test"):
        lab.fit(*stop)
    run_id = lab.run.info.run_id
    with held(lab.checkpoint.parent):
        for path in ("last", str(lab.checkpoint)):
            refused = lab.fit(f"--ckpt_path={path}")
            assert refused.code == os.EX_TEMPFAIL
            assert f"run {run_id[:8]} is being trained by another process" in refused.err
    assert lab.run.info.status == "FAILED"  # as it was


def test_where_locks_are_not_supported_a_warning_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), run_lock(folder):
        pass
