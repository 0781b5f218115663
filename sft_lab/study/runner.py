"""Fills the cells of a study: what is finished is kept, what crashed is tried again."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sft_lab.errors import RequestError
from sft_lab.study.executors import Executor
from sft_lab.study.job import BUSY, OTHER_CODE, REQUEST_WAS_WRONG, Ended, Job
from sft_lab.study.runs import StudyRun

State = Literal["waiting", "queued", "busy", "finished", "failed"]
_MOST_LOSSES = 20  # of machines under one run, as when it takes more memory than there is


@dataclass
class Progress:
    """How far a run of a study is.

    Attributes:
        run: The run.
        state: ``waiting`` for the run that it forks from, ``queued`` or running, ``busy`` where
            another process has it, or at its end.
        attempts: Crashes counted against it.
        losses: Machines lost under it.
        run_id: The finished run.
        reason: Why it has failed, or was tried again last.
        was_there: Finished before this study began.
        ask_at: When a busy run is asked for again, by the monotonic clock.
    """

    run: StudyRun
    state: State = "waiting"
    attempts: int = 0
    losses: int = 0
    run_id: str | None = None
    reason: str = ""
    was_there: bool = False
    ask_at: float = 0.0


@dataclass
class Runner:
    """Runs what is missing.

    Args:
        executor: Where.
        make_job: Gives the job of a run, and of ``RUN_ID@STAGE`` that it starts from.
        attempts: How often a run may crash before it is given up.
        lost: Called with a run under which its machine was lost, before it is tried again.
        tell: Called with the progress of every run whenever something has changed, and every few
            seconds.
        poll_s: Seconds between two calls of ``tell``.
        busy_s: Seconds until a run that another process has is asked for again.
    """

    executor: Executor
    make_job: Callable[[StudyRun, str | None], Job]
    attempts: int = 3
    lost: Callable[[StudyRun], None] = lambda run: None
    tell: Callable[[Mapping[str, Progress]], None] = lambda progress: None
    poll_s: float = 2.0
    busy_s: float = 15.0
    progress: dict[str, Progress] = field(default_factory=dict)

    def run(self, runs: Sequence[StudyRun], finished: Mapping[str, str]) -> dict[str, Progress]:
        """Run what is missing of some runs; those of earlier calls are known.

        Args:
            runs: The runs; a run that is forked from comes before those that are.
            finished: Run ids by digest of those that the store holds as finished.

        Returns:
            The progress of all runs so far, by digest.

        Raises:
            RequestError: If a machine has other code than the study was planned with.
        """
        for run in runs:
            if run.digest not in self.progress:
                self.progress[run.digest] = Progress(run)
            if run.digest in finished and self.progress[run.digest].state != "finished":
                self._finish(run.digest, finished[run.digest], was_there=True)
        while True:
            self._submit()
            self.tell(self.progress)
            if all(p.state in ("finished", "failed") for p in self.progress.values()):
                return self.progress
            for ended in self.executor.wait(self.poll_s):
                self._end(ended)

    def _submit(self) -> None:
        for progress in self.progress.values():
            is_due = progress.state == "busy" and time.monotonic() >= progress.ask_at
            if progress.state != "waiting" and not is_due:
                continue
            fork = progress.run.fork
            source = self.progress.get(fork.run) if fork else None
            if source is not None and source.state not in ("finished", "failed"):
                continue
            start = None
            if fork is not None and source is not None and source.run_id is not None:
                start = f"{source.run_id}@{fork.stage}"
            self.executor.submit(self.make_job(progress.run, start))
            if is_due:
                progress.ask_at = math.inf  # it stays busy until the answer is there
            else:
                progress.state = "queued"

    def _end(self, ended: Ended) -> None:
        progress = self.progress[ended.digest]
        if ended.run_id is not None:
            self._finish(ended.digest, ended.run_id)
            return
        progress.reason = ended.reason
        if ended.code == BUSY:
            progress.state, progress.ask_at = "busy", time.monotonic() + self.busy_s
            return
        if ended.code == OTHER_CODE:
            # It refuses within seconds, and would take one cell after the other.
            progress.state = "waiting"
            raise RequestError(f"cell '{progress.run.name}': {ended.reason}.")
        # A machine that is lost says nothing of the run; a crash may come again.
        progress.attempts += ended.code is not None
        if ended.code is None:
            progress.losses += 1
            self.lost(progress.run)
        given_up = (
            ended.code == REQUEST_WAS_WRONG
            or progress.attempts >= self.attempts
            or progress.losses >= _MOST_LOSSES
        )
        progress.state = "failed" if given_up else "waiting"

    def _finish(self, digest: str, run_id: str, *, was_there: bool = False) -> None:
        progress = self.progress[digest]
        progress.state, progress.run_id, progress.was_there = "finished", run_id, was_there
        progress.reason = ""
