"""Show progress in the terminal: a status line, a row per evaluation, a table at the end."""

import math
import os
import shutil
import sys
import time
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from sft_lab.callbacks.ability_history import AbilityHistory
from sft_lab.callbacks.training_log import TrainingLog
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.runs.evaluations import Point
from sft_lab.terminal import format_table, visible
from sft_lab.training.module import SFTModule


class ProgressLine(Callback):
    """Show stage, step, loss, speed, time left and the last scores.

    A terminal gets one line that is overwritten, cut to its width; a file gets plain lines, one per
    ten logging intervals.

    Args:
        training: Source of loss and speed.
        history: Source of scores.
        suite: The benchmarks.
        ui_command: The command that opens the runs in a browser, printed at the end.
        stream: Where to write; standard output by default.
    """

    def __init__(
        self,
        training: TrainingLog,
        history: AbilityHistory,
        suite: EvaluationSuite,
        ui_command: str,
        stream: TextIO | None = None,
    ) -> None:
        self.training = training
        self.history = history
        self.suite = suite
        self.ui_command = ui_command
        self.stream = stream or sys.stdout
        self._shown_step = -1
        self._evaluation_started = 0.0
        self._width = 0

    @property
    def _is_terminal(self) -> bool:
        return self.stream.isatty()

    def _write_over(self, line: str) -> None:
        line = visible(line)[: shutil.get_terminal_size().columns - 1]  # a wrapped line stays
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _write_line(self, line: str) -> None:
        if self._is_terminal and self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0
        self._write(visible(line) + "\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # the terminal or the pipe's reader is gone, which must not end a run
            quiet = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
            if self.stream is sys.stdout:
                sys.stdout = quiet  # which the interpreter flushes at exit
            self.stream = quiet

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_step = trainer.global_step

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
        schedule = pl_module.schedule
        scheduled = schedule.stages[schedule.stage_of_step(step - 1)]
        tokens_left = schedule.seen(schedule.num_steps).tokens - schedule.seen(step).tokens
        left = (
            tokens_left / self.training.tokens_per_s
            if self.training.tokens_per_s > 0
            else float("nan")
        )
        line = (
            f"{scheduled.name} {step - scheduled.first_step}/{scheduled.num_steps}  "
            f"step {step}/{schedule.num_steps}  loss {known(self.training.loss, '.3f')}  "
            f"{known(self.training.tokens_per_s, ',.0f')} tok/s  {duration(left)} left  "
            f"{self._scores()}"
        )
        if self._is_terminal:
            self._write_over(line)
        elif step % (10 * trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._write_line(line)

    def _scores(self) -> str:
        if not self.history.history:
            return ""
        return " ".join(self._named(self.history.history[-1]))

    def _named(self, measurement: Point) -> list[str]:
        keys = self.suite.score_keys
        scores = measurement.scores
        return [
            f"{name} {self.suite.shown(key, scores[key].value)}"
            for name, key in keys.items()
            if key in scores
        ]

    def on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._evaluation_started = time.perf_counter()

    def on_evaluation_part(self, trainer: Trainer, pl_module: LightningModule, line: str) -> None:
        """Show what is being evaluated."""
        if self._is_terminal:
            self._write_over(f"evaluating {line}")

    def on_evaluation_end(
        self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation
    ) -> None:
        """Print a row of scores."""
        seconds = time.perf_counter() - self._evaluation_started
        shown = self.suite.shown
        found = evaluation.scores
        scores = "  ".join(
            f"{name} {shown(key, found[key].value)} "
            f"[{shown(key, found[key].low)}, {shown(key, found[key].high)}]"
            for name, key in self.suite.score_keys.items()
            if key in found
        )
        step = evaluation.step
        ended = [m.after for m in self.history.history if m.step == step and m.after]
        after = f" (end of {ended[0]})" if ended else ""
        self._write_line(f"evaluation at step {step}{after}: {scores}  in {seconds:.1f} s")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for line in getattr(callback, "decision_lines", _no_lines)(step):
                self._write_line(line)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_line("")
        self._write_line(ability_table(self.history.history, self.suite))
        self._write_line(f"\nIn a browser: {self.ui_command}")


def _no_lines(step: int) -> list[str]:
    return []


def ability_table(history: list[Point], suite: EvaluationSuite) -> str:
    """Return every ability, in percent, before training and at every stage boundary."""
    rows = [m for m in history if m.is_boundary]
    header = ["after", "step", *suite.benchmarks]
    body = [
        [
            m.after or "(base)",
            str(m.step),
            *(
                suite.shown(key, m.scores[key].value) if key in m.scores else "-"
                for key in suite.score_keys.values()
            ),
        ]
        for m in rows
    ]
    return format_table(header, body)


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
