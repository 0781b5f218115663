"""Run programs for the sandbox's tests, at the levels and routes that this machine supports."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sft_lab.evaluation.sandbox.isolation import TOOLS, Route, find_tool
from sft_lab.evaluation.sandbox.sandbox import (
    Level,
    Program,
    ProgramResult,
    isolation_fault,
    isolation_route,
    run_programs,
)

FAULT = isolation_fault()
needs_isolation = pytest.mark.skipif(FAULT is not None, reason=f"no isolation here: {FAULT}")
LEVELS = ["limited", pytest.param("isolated", marks=needs_isolation)]


def run(
    level: Level, *solutions: str, test: str = "", timeout_s: float = 10.0, workers: int = 1
) -> list[ProgramResult]:
    """Run solutions against one test, by default an empty one."""
    return run_programs(
        [Program(solution, test) for solution in solutions],
        timeout_s=timeout_s,
        memory_mb=256,
        workers=workers,
        level=level,
    )


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    children: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # gone by now
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, file.read_text().split())
    return children + [d for child in children for d in descendants(child)]


def status(pid: int) -> dict[str, str]:
    """Return a process's fields in ``/proc/PID/status``, by name."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":\t") for line in lines)
    return {}


def running(pid: int, limit_s: float = 30.0) -> list[int]:
    """Wait for a process to run a program in the sandbox; return its descendants, oldest first.

    The last two run the program's test and its solution, under their system call filters.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = descendants(pid)
        if [status(pid).get("Seccomp") for pid in found[-2:]] == ["2", "2"]:
            return found
        time.sleep(0.01)
    raise TimeoutError(f"no program runs after {limit_s} s")


@pytest.fixture(scope="session")
def util_linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tools without bubblewrap."""
    folder = tmp_path_factory.mktemp("tools")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)  # for a test that runs as another user
    for name in TOOLS["util-linux"]:
        if tool := find_tool(name):
            (folder / name).symlink_to(tool)
    return folder


def choose(route: str, monkeypatch: pytest.MonkeyPatch, util_linux: Path) -> None:
    if route == "util-linux":
        monkeypatch.setenv("PATH", str(util_linux))
    if isolation_route() != route:
        fault = isolation_fault() or (shutil.which("bwrap") or "no bwrap") + " does not work"
        pytest.skip(f"no isolation by {route} here: {fault}")


@pytest.fixture(params=list(TOOLS))
def route(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, util_linux: Path
) -> Route:
    """A route to isolation, with the other one hidden."""
    choose(request.param, monkeypatch, util_linux)
    return request.param


@pytest.fixture(params=["limited", *TOOLS])
def level(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, util_linux: Path
) -> Level:
    """A level, once per route to it."""
    if request.param == "limited":
        return "limited"
    choose(request.param, monkeypatch, util_linux)
    return "isolated"
