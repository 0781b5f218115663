"""Run cells with an executor that ends jobs as scripted by the test."""

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from sft_lab.errors import RequestError
from sft_lab.launch.run_config import RunConfig
from sft_lab.study.design import CellSpec
from sft_lab.study.job import Ended, Job
from sft_lab.study.runner import Runner
from sft_lab.study.runs import SharedStages, StudyRun, with_forks

CODE, LOST, BUSY, OTHER_CODE = 1, None, os.EX_TEMPFAIL, os.EX_CONFIG


def study_run(name: str, *stages: str, base: str = "b") -> StudyRun:
    return StudyRun(
        digest=name,
        cells=(CellSpec("q", name, {}, 0, (name,), {}),),
        steps=dict.fromkeys(stages, 10),
        samples=0,
        tokens=0,
        stages={stage: stage for stage in stages},
        base=base,
        config=cast(RunConfig, None),  # the runner does not read it
        abilities={},
    )


class Scripted:
    """Ends one job per call, oldest first, as scripted by name; by default it finishes."""

    def __init__(self, script: dict[str, list[tuple[int | None, str]]]) -> None:
        self.script = {name: deque(ends) for name, ends in script.items()}
        self.waiting: deque[Job] = deque()
        self.submitted: list[tuple[str, str | None]] = []

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self.submitted.append((job.digest, job.fork))

    def wait(self, timeout_s: float) -> Sequence[Ended]:
        if not self.waiting:
            return []
        job = self.waiting.popleft()
        if self.script.get(job.digest):
            code, reason = self.script[job.digest].popleft()
            return [Ended(job.digest, code, None, reason)]
        return [Ended(job.digest, 0, f"run-{job.digest}")]

    def stop(self) -> None: ...


def make_job(run: StudyRun, fork: str | None) -> Job:
    here = Path()
    return Job(run.digest, "", run.name, here, fork, "", here, here, here, {})


def states(runner: Runner) -> dict[str, str]:
    return {digest: p.state for digest, p in runner.progress.items()}


def test_runs_that_share_stages_start_from_the_first_of_them() -> None:
    runs = with_forks(
        [
            study_run("code_only", "code"),
            study_run("sequential", "code", "math", "general"),
            study_run("other_end", "code", "math", "chat"),
            study_run("other_seed", "code", "math", base="another seed"),
        ]
    )
    assert [run.fork for run in runs] == [
        None,
        SharedStages("code_only", "code"),
        SharedStages("sequential", "math"),
        None,
    ]
    assert [run.steps_to_train for run in runs] == [10, 20, 10, 20]
    executor = Scripted({})
    Runner(executor, make_job).run(runs, finished={})
    assert executor.submitted == [
        ("code_only", None),
        ("other_seed", None),
        ("sequential", "run-code_only@code"),
        ("other_end", "run-sequential@math"),
    ]


def test_a_run_always_trains_its_own_last_stage() -> None:
    # Both end with `code`: nothing would be left to train.
    assert with_forks([study_run("a", "code", "math"), study_run("b", "code")])[1].fork is None


def test_a_finished_run_is_not_run_again_and_can_be_forked_from() -> None:
    runs = with_forks([study_run("one", "code"), study_run("two", "code", "math")])
    executor = Scripted({})
    Runner(executor, make_job).run(runs, finished={"one": "old-run"})
    assert executor.submitted == [("two", "old-run@code")]


def test_a_crash_is_retried_up_to_the_limit_while_the_rest_continues() -> None:
    executor = Scripted({"bad": [(CODE, "out of memory")] * 9, "shaky": [(CODE, "disk")] * 2})
    runner = Runner(executor, make_job, attempts=3)
    runner.run([study_run(n, n) for n in ("bad", "shaky", "good")], finished={})
    assert states(runner) == {"bad": "failed", "shaky": "finished", "good": "finished"}
    assert [name for name, _ in executor.submitted].count("bad") == 3
    assert (runner.progress["bad"].attempts, runner.progress["bad"].reason) == (3, "out of memory")
    assert runner.progress["shaky"].attempts == 2


def test_a_wrong_request_is_not_retried() -> None:
    executor = Scripted({"wrong": [(2, "error: unknown key")]})
    runner = Runner(executor, make_job, attempts=3)
    runner.run([study_run("wrong", "a")], finished={})
    assert states(runner) == {"wrong": "failed"}
    assert len(executor.submitted) == 1


def test_a_machine_with_different_code_stops_the_study_before_it_fails_other_cells() -> None:
    executor = Scripted({"a": [(OTHER_CODE, "host has different code")]})
    runner = Runner(executor, make_job)
    with pytest.raises(RequestError, match="cell 'q a seed 0': host has different code"):
        runner.run([study_run("a", "x"), study_run("b", "x", base="c")], {})
    assert states(runner) == {"a": "waiting", "b": "queued"}


def test_a_lost_machine_does_not_count_as_a_crash() -> None:
    executor = Scripted({"run": [(LOST, "node died")] * 5})
    lost: list[str] = []
    runner = Runner(executor, make_job, attempts=1, on_lost=lambda run: lost.append(run.name))
    runner.run([study_run("run", "a")], finished={})
    assert states(runner) == {"run": "finished"}
    assert lost == ["q run seed 0"] * 5
    assert (runner.progress["run"].attempts, runner.progress["run"].losses) == (0, 5)


def test_a_run_that_another_process_trains_is_awaited_while_the_rest_continues() -> None:
    executor = Scripted({"shared": [(BUSY, "still running")] * 9})
    runner = Runner(executor, make_job, attempts=1, busy_s=0)
    runner.run([study_run(n, n) for n in ("shared", "mine")], finished={})
    assert states(runner) == {"shared": "finished", "mine": "finished"}
    assert (runner.progress["shared"].attempts, runner.progress["shared"].losses) == (0, 0)
    assert executor.submitted[:2] == [("shared", None), ("mine", None)]


def test_a_run_that_another_process_trains_is_not_submitted_again_at_once() -> None:
    executor = Scripted({"shared": [(BUSY, "still running")]})
    runner = Runner(executor, make_job, busy_s=0.2)
    begin = time.monotonic()
    runner.run([study_run("shared", "a")], finished={})
    assert len(executor.submitted) == 2
    assert time.monotonic() - begin >= 0.2


def test_a_run_whose_machine_is_lost_every_time_fails_in_the_end() -> None:
    executor = Scripted({"hungry": [(LOST, "out of memory")] * 100})
    runner = Runner(executor, make_job, attempts=1)
    runner.run([study_run("hungry", "a")], finished={})
    assert states(runner) == {"hungry": "failed"}


def test_if_the_run_to_fork_from_fails_all_stages_are_trained() -> None:
    runs = with_forks([study_run("one", "code"), study_run("two", "code", "math")])
    executor = Scripted({"one": [(2, "error")]})
    runner = Runner(executor, make_job)
    runner.run(runs, finished={})
    assert executor.submitted == [("one", None), ("two", None)]
    assert states(runner) == {"one": "failed", "two": "finished"}
