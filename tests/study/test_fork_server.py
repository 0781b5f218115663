"""Fork a process for each job, without any training: what a study reads of a fork, and its end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own: a server is forked before anything else is done. In place of `run_job`,
# an attendant starts `fit` and waits for it.
SCRIPT = """
import json, os, sys, threading, types
from multiprocessing.connection import Client
from pathlib import Path

from sft_lab.errors import Interrupted, handle_signals, interrupt
from sft_lab.study.fork_server import ForkServer, run_in_fork
from sft_lab.study.job import Ended, Job


def fit(arguments):
    print("argv", sys.argv == [*sys.argv[:1], *arguments], arguments[-1], flush=True)
    if arguments[-1] == "raises":
        raise RuntimeError("the sky fell")
    if arguments[-1] == "exits":
        sys.exit(3)
    if arguments[-1] == "waits":
        try:
            threading.Event().wait()
        except Interrupted as stop:
            print("saved", flush=True)
            return stop.exit_code
    return 0


def run_job(job, start):
    if job.name == "refused":
        raise OSError("the store is gone")
    with open(job.log, "ab") as log:
        process = start([job.name], log)
        try:
            return Ended(job.digest, process.wait(), None)
        except BaseException:
            process.terminate()
            process.wait(20)
            raise


sys.modules["sft_lab.study.run_job"] = types.SimpleNamespace(run_job=run_job)
handle_signals(interrupt)
folder = Path.cwd()
found = {}
with ForkServer(fit) as address:
    private = oct(Path(address).parent.stat().st_mode & 0o777)
    for name in ("ends", "raises", "exits", "refused"):
        job = Job(name, "", name, folder, None, "", folder, folder / name, folder, {})
        try:
            found[name] = run_in_fork(address, job).code
        except OSError as fault:
            found[name] = str(fault)
    job = Job("waits", "", "waits", folder, None, "", folder, folder / "waits", folder, {})
    with Client(address, "AF_UNIX") as connection:  # as of a worker of Ray that is killed
        connection.send(job)
        while not (folder / "waits").exists() or not (folder / "waits").read_text():
            pass
    while "saved" not in (folder / "waits").read_text():
        pass
found["gone"] = run_in_fork(address, job).reason
print(json.dumps([private, Path(address).parent.exists(), found]))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("forks")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return folder, json.loads(process.stdout)


def test_a_fork_ends_as_a_process_of_the_command_line_does(outcome: tuple[Path, Any]) -> None:
    folder, (_, _, found) = outcome
    assert (found["ends"], found["raises"], found["exits"]) == (0, 1, 3)
    assert (folder / "ends").read_text() == "argv True ends\n"
    assert (folder / "raises").read_text().endswith("RuntimeError: the sky fell\n")
    assert found["refused"] == "the store is gone"


def test_a_fork_saves_and_ends_when_what_asked_for_it_has_died(outcome: tuple[Path, Any]) -> None:
    folder, _ = outcome
    assert (folder / "waits").read_text() == "argv True waits\nsaved\n"


def test_a_server_is_private_and_leaves_nothing(outcome: tuple[Path, Any]) -> None:
    _, (private, is_left, found) = outcome
    assert (private, is_left) == ("0o700", False)
    assert found["gone"] == "the process that starts runs has died"
