import subprocess
import sys
from pathlib import Path

import pytest

from sft_lab.errors import RequestError
from sft_lab.run_lock import run_lock

HOLDER = """
import sys, time
from pathlib import Path
from sft_lab.run_lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "1f00000000000000"


def test_a_run_belongs_to_one_process_until_that_is_gone(folder: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RequestError, match="run 1f000000 is being trained by another process"),
            run_lock(folder),
        ):
            pass
        holder.kill()
        holder.wait()
    with run_lock(folder):
        pass


def test_where_locks_are_not_supported_a_warning_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), run_lock(folder):
        pass
