"""Run the missing cells of a study, retrying runs that crash."""

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
_MOST_LOSSES = 20  # machines lost by one run, as when it needs more memory than they have


@dataclass
class Progress:
    """The progress of one run of a study.

    Attributes:
        run: The run.
        state: ``waiting`` for the run it forks from, ``queued`` or running, ``busy`` if another
            process is training it, ``finished`` or ``failed``.
        attempts: Number of crashes.
        losses: Number of machines lost while running it.
        run_id: The finished run.
        reason: Why it failed, or was last retried.
        was_there: True if it had finished before this study started.
        ask_at: When to submit a busy run again, by the monotonic clock.
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
    """Runs the missing runs of a study.

    Args:
        executor: Executor of the jobs.
        make_job: Makes the job of a run that starts from ``RUN_ID@STAGE``, or from the base if
            that is None.
        attempts: Number of crashes after which a run has failed.
        on_lost: Called with a run whose machine was lost, before it is retried.
        on_progress: Called with the progress of every run after every change, and every few
            seconds.
        poll_s: Most seconds between two calls of ``on_progress``.
        busy_s: Seconds until a busy run is submitted again.
    """

    executor: Executor
    make_job: Callable[[StudyRun, str | None], Job]
    attempts: int = 3
    on_lost: Callable[[StudyRun], None] = lambda run: None
    on_progress: Callable[[Mapping[str, Progress]], None] = lambda progress: None
    poll_s: float = 2.0
    busy_s: float = 15.0
    progress: dict[str, Progress] = field(default_factory=dict)

    def run(self, runs: Sequence[StudyRun], finished: Mapping[str, str]) -> dict[str, Progress]:
        """Run those runs that have not finished; runs of earlier calls are remembered.

        Args:
            runs: The runs; forks come after the run they start from.
            finished: Run ids by digest of all finished runs in the store.

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
            self.on_progress(self.progress)
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
                progress.ask_at = math.inf  # stays busy until this attempt has ended
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
            # That machine refuses within seconds, so it would fail one cell after another.
            progress.state = "waiting"
            raise RequestError(f"cell '{progress.run.name}': {ended.reason}.")
        # A lost machine is not the run's fault, so only crashes count as attempts.
        progress.attempts += ended.code is not None
        if ended.code is None:
            progress.losses += 1
            self.on_lost(progress.run)
        has_failed = (
            ended.code == REQUEST_WAS_WRONG
            or progress.attempts >= self.attempts
            or progress.losses >= _MOST_LOSSES
        )
        progress.state = "failed" if has_failed else "waiting"

    def _finish(self, digest: str, run_id: str, *, was_there: bool = False) -> None:
        progress = self.progress[digest]
        progress.state, progress.run_id, progress.was_there = "finished", run_id, was_there
        progress.reason = ""
