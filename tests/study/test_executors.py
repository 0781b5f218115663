"""Ray that dies on this machine, as a stand-in that fails as Ray was seen to."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

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

    def init(self, **settings: Any) -> None:
        self.starts += 1

    def nodes(self) -> list[Any]:
        return [{"Alive": True, "Resources": {"CPU": 1, "memory": 10**12}}]

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


def test_ray_that_dies_is_started_again_and_no_job_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    executor = RayExecutor(Resources(cpus=1, gpus=0))
    jobs = {
        name: Job(name, "", name, tmp_path, None, "", tmp_path, tmp_path, tmp_path, {})
        for name in ("done", "running", "queued")
    }
    for job in jobs.values():
        executor.submit(job)
    ended = {end.digest: end for end in executor.wait(0)}
    assert ended["done"].run_id == "1f"
    assert {name for name, end in ended.items() if end.code is None} == {"running", "queued"}
    assert ended["running"].reason == "Ray's process on this machine has died"
    for name in ("running", "queued"):
        executor.submit(jobs[name])
    assert ray.starts == 2
    assert [end.code for end in executor.wait(0)] == [0, 0]
