"""Ranks that die, fail or hang: the first error of their own ends the run, and none is left."""

import pickle
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_lab.errors import RequestError, RunError
from sft_lab.launch import processes
from sft_lab.launch.rank import Outcome
from sft_lab.runs.inputs import check_same

# In place of a rank's program: names its process and a child of it, waits for all, then acts.
RANK = """
import os, pathlib, pickle, signal, subprocess, sys, time
sent = pickle.load(sys.stdin.buffer)
folder, own = pathlib.Path(sent["config"]), os.environ["RANK"]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / f"{own}.part").write_text(f"{os.getpid()} {child.pid}")
(folder / f"{own}.part").rename(folder / own)
while len([path for path in folder.iterdir() if path.suffix == ""]) < 2:
    time.sleep(0.01)
def end(report):
    os.write(sent["report"], report)
    os._exit(1)
"""
HANGS = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def ends(fault: Exception, *, is_echo: bool = False) -> str:
    return f"end({pickle.dumps(Outcome(fault=fault, is_echo=is_echo))!r})"


LOST = ends(RunError("rank 0: gloo: Connection closed by peer"), is_echo=True)


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        (HANGS, "os.kill(os.getpid(), signal.SIGKILL)", "^rank 1 was killed by SIGKILL, as a mac"),
        (HANGS, "os._exit(3)", "^rank 1 ended with exit code 3.$"),
        (LOST, "time.sleep(0.3); " + ends(RunError("rank 1: no memory")), "^rank 1: no memory$"),
        (LOST, HANGS, "^rank 1 did not answer the other ranks, which waited 1800 s$"),
        (HANGS, ends(RequestError("corpus: no rows")), "^corpus: no rows$"),
    ],
    ids=["killed", "ended", "failed", "hung", "refused"],
)
def test_the_error_of_a_rank_ends_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: str, second: str, error: str
) -> None:
    program = f"{RANK}\nif own == '0':\n    {first}\nelse:\n    {second}\n"
    monkeypatch.setattr(processes, "_PROGRAM", program)
    monkeypatch.setattr(processes, "_AFTER_FAULT_S", 0.4)
    config: Any = str(tmp_path)
    with pytest.raises((RunError, RequestError), match=error):
        processes.run_ranks(config, 2)
    ids = [int(number) for rank in "01" for number in (tmp_path / rank).read_text().split()]
    assert len(ids) == 4
    deadline = time.monotonic() + 5
    while left := [number for number in ids if is_running(number)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ranks_with_other_inputs_are_refused() -> None:
    same = {"corpus.sources.math": "abc (9 rows)", "code of sft_lab": "11"}
    check_same([same, dict(same)])
    for name in same:
        with pytest.raises(RequestError, match=f"{name} differs .* on rank 0, other on rank 1; "):
            check_same([same, same | {name: "other"}])
