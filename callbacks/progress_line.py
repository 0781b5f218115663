"""Show progress as plain lines, for a file or a pipe: steps, evaluations, a table at the end."""

import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.page_writer import PageWriter
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.runs.evaluations import Point
from sft_lab.runs.logger import run_logger
from sft_lab.terminal import format_table, visible
from sft_lab.training.module import SFTModule
from sft_lab.training.schedule import Schedule


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        stage: Name of the stage.
        stage_step: Optimizer steps of the stage that are done.
        stage_steps: All of them.
        step: Optimizer steps of the run that are done.
        steps: All of them.
        loss: Mean loss since the last logged point, in nats per target token.
        tokens_per_s: Tokens trained in a second since this process began.
        left_s: Seconds to the end, evaluations included.
    """

    stage: str
    stage_step: int
    stage_steps: int
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    left_s: float


class ProgressLine(Callback):
    """Show stage, step, loss, speed, time left and the last scores, a line per ten points logged.

    Args:
        training: Source of loss and speed.
        history: Source of scores.
        suite: The benchmarks.
        page: Source of the conclusion.
        store_option: The option by which commands find the run's store; empty if they do without.
        stream: Where to write; standard output by default.
    """

    def __init__(
        self,
        training: TrainingLog,
        history: AbilityHistory,
        suite: EvaluationSuite,
        page: PageWriter,
        store_option: str = "",
        stream: TextIO | None = None,
    ) -> None:
        self.training = training
        self.history = history
        self.suite = suite
        self.page = page
        self.store_option = store_option
        self.stream = stream or sys.stdout
        self._shown_step = self._first_step = -1
        self._evaluation_started = 0.0
        self._evaluation_s: dict[bool, float] = {}  # of the last one, by whether it was full

    def _write_line(self, line: str) -> None:
        try:
            self.stream.write(visible(line) + "\n")
            self.stream.flush()
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        """Write nowhere from now on: a terminal or a reader that is gone must not end a run."""
        quiet = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        if self.stream is sys.stdout:
            sys.stdout = quiet  # which the interpreter flushes at exit
        self.stream = quiet

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_step = self._first_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (
            not isinstance(pl_module, SFTModule)
            or pl_module.schedule is None
            or step == self._shown_step
        ):
            return
        self._shown_step = step
        self._show_step(trainer, self._progress(pl_module.schedule, step))

    def _show_step(self, trainer: Trainer, now: Progress) -> None:
        if now.step % (10 * trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            scores = self._named(self.history.history[-1]) if self.history.history else []
            self._write_line(
                f"{now.stage} {now.stage_step}/{now.stage_steps}  step {now.step:,}/{now.steps:,}  "
                f"loss {known(now.loss, '.3f')}  {known(now.tokens_per_s, ',.0f')} tok/s  "
                f"{duration(now.left_s)} left  {' '.join(scores)}"
            )

    def _progress(self, schedule: Schedule, step: int) -> Progress:
        scheduled = schedule.stages[schedule.stage_of_step(step - 1)]
        trained_s = self.training.trained_s
        tokens = schedule.seen(step).tokens - schedule.seen(self._first_step).tokens
        speed = tokens / trained_s if trained_s > 0 else float("nan")
        left = schedule.seen(schedule.num_steps).tokens - schedule.seen(step).tokens
        return Progress(
            stage=scheduled.name,
            stage_step=step - scheduled.first_step,
            stage_steps=scheduled.num_steps,
            step=step,
            steps=schedule.num_steps,
            loss=self.training.recent_loss,
            tokens_per_s=speed,
            left_s=left / speed + self._evaluations_left_s(schedule, step) if speed else math.nan,
        )

    def _evaluations_left_s(self, schedule: Schedule, step: int) -> float:
        """Return the seconds of the evaluations to come, each as long as the last of its kind."""
        longest = max(self._evaluation_s.values(), default=0.0)
        due = (s for s in range(step, schedule.num_steps + 1) if s != self._evaluated_step)
        boundaries = schedule.boundaries
        return sum(
            self._evaluation_s.get(at in boundaries or self.suite.budget is None, longest)
            for at in due
            if self.suite.is_due(at, boundaries)
        )

    @property
    def _evaluated_step(self) -> int:
        return self.history.history[-1].step if self.history.history else -1

    def _named(self, measurement: Point) -> list[str]:
        scores = measurement.scores
        return [
            f"{label} {self.suite.shown(key, scores[key].value)}{self._unit(key)}"
            for label, key in self.suite.labels.items()
            if key in scores
        ]

    def _unit(self, key: str) -> str:
        return " %" if self.suite.is_percent(key) else ""

    def on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._evaluation_started = time.perf_counter()

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Show the scores, and what callbacks have decided by them."""
        seconds = time.perf_counter() - self._evaluation_started
        self._evaluation_s[not evaluation.num_items] = seconds
        self._show_evaluation(evaluation, seconds)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for line in getattr(callback, "decision_lines", _no_lines)(evaluation.step):
                self._write_line(line)

    def _show_evaluation(self, evaluation: Evaluation, seconds: float) -> None:
        shown = self.suite.shown
        # ``validate`` measures selection items alone.
        found = evaluation.scores or evaluation.selection
        scores = "  ".join(
            f"{label} {shown(key, found[key].value)}{self._unit(key)} "
            f"[{shown(key, found[key].low)}, {shown(key, found[key].high)}]"
            for label, key in self.suite.labels.items()
            if key in found
        )
        ended = self._stage_ended(evaluation.step)
        after = f" (end of {ended})" if ended else ""
        self._write_line(
            f"evaluation at step {evaluation.step:,}{after}: {scores}  in {seconds:.1f} s"
        )

    def _stage_ended(self, step: int) -> str:
        return next((m.after for m in self.history.history if m.step == step and m.after), "")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_line("")
        self._write_line(ability_table(self.history.history, self.suite))
        self._write_line("")
        self._write_end(trainer)

    def _write_end(self, trainer: Trainer) -> None:
        """Say what was kept, what may be done next, and what the run has shown."""
        run = f"{run_logger(trainer).run_id[:8]}{self.store_option}"
        self._write_line(f"Kept in run {run[:8]}: scores, answers, weights of every stage")
        self._write_line(f"Next: sft-lab compare {run}")
        self._write_line(f"  or: sft-lab ui {run}")
        self._write_prose(self.page.conclusion)

    def _write_prose(self, text: str) -> None:
        self._write_line(text)


def _no_lines(step: int) -> list[str]:
    return []


def ability_table(history: list[Point], suite: EvaluationSuite) -> str:
    """Return every ability before training and at every stage boundary."""
    rows = [m for m in history if m.is_boundary]
    header = ["after", "step", *headings(suite)]
    body = [
        [
            m.after or "(base)",
            f"{m.step:,}",
            *(
                suite.shown(key, m.scores[key].value) if key in m.scores else "-"
                for key in suite.labels.values()
            ),
        ]
        for m in rows
    ]
    return format_table(header, body)


def headings(suite: EvaluationSuite) -> list[str]:
    """Return the headings of columns of scores, with their unit: ``math %``."""
    return [f"{label} %" if suite.is_percent(key) else label for label, key in suite.labels.items()]


def known(value: float, spec: str) -> str:
    """Return a number in a format, or ? before the first is known.

    >>> known(1234.5, ",.0f"), known(float("nan"), ".3f")
    ('1,234', '?')
    """
    return "?" if math.isnan(value) else format(value, spec)


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(75), duration(3720), duration(float("nan"))
    ('1:15', '1:02:00', '?')
    """
    if math.isnan(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
