"""Ray that dies on this machine, as a stand-in that fails as Ray was seen to."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sft_lab.errors import RequestError
from sft_lab.study.design import Resources
from sft_lab.study.executors import RayExecutor
from sft_lab.study.job import Ended, Job


class RayError(Exception):
    pass


class LocalRayletDiedError(RayError):
    pass


class StandIn(ModuleType):
    """Ray with one slot: the first job never ends, and its raylet dies under the second."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RuntimeError, LocalRayletDiedError=LocalRayletDiedError
    )

    def __init__(self) -> None:
        super().__init__("ray")
        self.starts = 0
        self.address = "127.0.0.1"
        self.folders: list[Path] = []

    def init(self, **settings: Any) -> None:
        self.starts += 1
        self.folders.append(Path(settings["_temp_dir"]))
        self.folders[-1].mkdir(mode=0o777)

    def nodes(self) -> list[Any]:
        resources = {"CPU": 1, "memory": 10**12}
        return [{"Alive": True, "Resources": resources, "NodeManagerAddress": self.address}]

    def remote(self, **settings: Any) -> Any:
        return lambda function: SimpleNamespace(
            options=lambda name: SimpleNamespace(remote=lambda job: (self.starts, job.digest))
        )

    def wait(self, refs: list[Any], **settings: Any) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref != (1, "running")], []

    def get(self, ref: tuple[int, str]) -> Ended:
        start, digest = ref
        if start == 1 and digest == "queued":
            raise LocalRayletDiedError
        return Ended(digest, 0, "1f")

    def shutdown(self) -> None:
        pass


def job(name: str) -> Job:
    here = Path()
    return Job(name, "", name, here, None, "", here, here, here, {})


def test_the_folder_of_an_own_cluster_is_private_and_is_removed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    executor = RayExecutor(Resources(cpus=1, gpus=0))
    executor.submit(job("done"))
    (folder,) = ray.folders
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    executor.wait(0)
    executor.stop()
    assert not folder.parent.exists()


def test_ray_s_settings_do_not_stay_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noting(StandIn):
        def init(self, **settings: Any) -> None:
            self.seen = {k: v for k, v in os.environ.items() if k.startswith("RAY_")}
            super().init(**settings)

    ray = Noting()
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_worker_niceness", "5")
    executor = RayExecutor(Resources(cpus=1, gpus=0))
    executor.submit(job("done"))
    assert ray.seen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert ray.seen["RAY_worker_niceness"] == "5"
    assert [name for name in os.environ if name.startswith("RAY_")] == ["RAY_worker_niceness"]
    executor.wait(0)
    executor.stop()


def test_an_own_cluster_that_others_can_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = StandIn()
    ray.address = "192.0.2.2"
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(RequestError, match=r"listens on 192\.0\.2\.2, not only on loopback"):
        RayExecutor(Resources(cpus=1, gpus=0)).submit(job("done"))
    assert not ray.folders[0].exists()


def test_ray_that_dies_is_started_again_and_no_job_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    executor = RayExecutor(Resources(cpus=1, gpus=0))
    jobs = {name: job(name) for name in ("done", "running", "queued")}
    for waiting in jobs.values():
        executor.submit(waiting)
    ended = {end.digest: end for end in executor.wait(0)}
    assert ended["done"].run_id == "1f"
    assert {name for name, end in ended.items() if end.code is None} == {"running", "queued"}
    assert ended["running"].reason == "Ray's process on this machine has died"
    for name in ("running", "queued"):
        executor.submit(jobs[name])
    assert ray.starts == 2
    assert [end.code for end in executor.wait(0)] == [0, 0]
