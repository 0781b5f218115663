"""The ways to run a program that this machine has: fixtures that choose one by ``PATH``."""

import shutil
from pathlib import Path

import pytest

from sft_lab.evaluation.sandbox import Level, isolation_fault, isolation_route
from sft_lab.evaluation.sandbox_routes import TOOLS, Route, find_tool


@pytest.fixture(scope="session")
def util_linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs without bubblewrap."""
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
    """A route to isolation, the only one to be found."""
    choose(request.param, monkeypatch, util_linux)
    return request.param


@pytest.fixture(params=["limited", *TOOLS])
def level(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, util_linux: Path
) -> Level:
    """A level, by each of its routes."""
    if request.param == "limited":
        return "limited"
    choose(request.param, monkeypatch, util_linux)
    return "isolated"
