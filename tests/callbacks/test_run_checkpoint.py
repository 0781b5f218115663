"""Signals that come at a bad moment."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_lab import Lab

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.in_loop_evaluation import InLoopEvaluation
from sft_lab.callbacks.page_writer import PageWriter
from sft_lab.callbacks.progress_line import ProgressLine
from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.errors import Interrupted, interruptible
from sft_lab.evaluation.suite import EvaluationSuite

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


TRAINER = SimpleNamespace(global_rank=0)


class Dying:
    """Gets a SIGTERM in its destructor, where Python swallows what the handler raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def checkpoint() -> Iterator[RunCheckpoint]:
    made: Any = RunCheckpoint()
    made.on_train_start(TRAINER, None)
    yield made
    made.teardown(None, None, "fit")


@pytest.mark.parametrize("hook", ["on_evaluation_part", "on_evaluation_end", "on_evaluation_start"])
def test_a_signal_that_was_swallowed_ends_the_run_at_the_next_safe_point(
    checkpoint: Any, hook: str
) -> None:
    checkpoint.on_evaluation_start(None, None)
    Dying()
    with pytest.raises(Interrupted, match="SIGTERM"):
        getattr(checkpoint, hook)(*[None] * (2 if hook == "on_evaluation_start" else 3))


def test_a_signal_that_was_swallowed_before_training_ends_the_run_when_it_starts() -> None:
    made: Any = RunCheckpoint()

    def start() -> None:
        with interruptible():
            Dying()
            made.on_train_start(TRAINER, None)

    with pytest.raises(Interrupted, match="SIGTERM"):
        start()
    made.on_train_start(TRAINER, None)
    made.teardown(None, None, "fit")


def test_a_terminal_that_closes_ends_the_run_at_a_safe_point_but_not_under_nohup() -> None:
    old = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Interrupted, match="SIGHUP") as stopped, interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopped.value.exit_code == 129
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_reader_that_is_gone_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    suite = EvaluationSuite({})
    log = TrainingLog(["math"], InLoopEvaluation(suite))
    history = AbilityHistory(suite)
    line: Any = ProgressLine(log, history, suite, PageWriter(history, lambda run, step: ""))
    module = "sft_lab.callbacks.progress_line"
    monkeypatch.setattr(f"{module}.run_logger", lambda _: SimpleNamespace(run_id="0" * 32))
    for _ in range(2):
        line.on_train_end(None, None)
    assert sys.stdout.writable()
    sys.stdout.flush()


def test_only_a_run_that_exists_promises_to_be_resumed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("sft_lab.launch.run.check_limits", interrupt)
    stopped = lab.fit()
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "Stopped by SIGINT."
    assert lab.runs == []
