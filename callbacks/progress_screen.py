"""Show progress on a terminal: a header, one live line, an aligned row per evaluation."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from sft_lab.callbacks.progress_line import Progress, ProgressLine, duration, headings, known
from sft_lab.evaluation.evaluator import Evaluation
from sft_lab.metrics.score import Score
from sft_lab.runs.logger import run_logger
from sft_lab.terminal import visible
from sft_lab.training.module import SFTModule

_REFRESH_S = 0.1
_SHORTEST_BAR = 8
_TIME_WIDTH = 7  # "1,234 s"
_CELL = 15  # "89.5▼9 [84-93]"


class ProgressScreen(ProgressLine):
    """Show what ``ProgressLine`` does, in the width that a terminal has; made from the same.

    Attributes:
        minutes: How long the run is likely to take; None if unknown.
    """

    minutes: float | None = None
    _live: Live | None = None
    _refreshed = 0.0
    _has_header = False

    @cached_property
    def _console(self) -> Console:
        return Console(file=self.stream, highlight=False, markup=False, emoji=False)

    @override
    def _write_line(self, line: str) -> None:
        self._print(Text(visible(line)))

    def _print(self, text: Text, *, wraps: bool = False) -> None:
        try:
            self._console.print(text, soft_wrap=not wraps)
        except OSError:
            self._hang_up()

    def _update(self, renderable: Any, *, now: bool = False) -> None:
        """Replace the live line, ten times a second at most."""
        if not now and time.perf_counter() - self._refreshed < _REFRESH_S:
            return
        self._refreshed = time.perf_counter()
        try:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(renderable, refresh=True)
        except OSError:
            self._hang_up()

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except OSError:
                self._hang_up()

    @override
    def _hang_up(self) -> None:
        super()._hang_up()
        self._live = None
        self._console.file = self.stream

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not isinstance(pl_module, SFTModule) or pl_module.schedule is None:
            return
        logger = run_logger(trainer)
        step, steps = trainer.global_step, pl_module.schedule.num_steps
        parts = [
            f"{logger.run_name}",
            f"resumed at step {step:,} of {steps:,}" if step else f"{steps:,} steps",
            *([] if self.minutes is None or step else [f"about {minutes_text(self.minutes)}"]),
            f"run {logger.run_id[:8]}",
        ]
        self._print(Text(visible(" · ".join(parts)), style="bold"))

    @override
    def _show_step(self, trainer: Trainer, now: Progress) -> None:
        self._update(self._line(now))

    def _line(self, now: Progress) -> Table:
        parts = [
            f"{100 * now.step // now.steps} %",
            f"{visible(now.stage)} {now.stage_step}/{now.stage_steps}",
            f"{duration(now.left_s)} left",
            f"loss {known(now.loss, '.3f')}",
            f"{known(now.tokens_per_s, ',.0f')} tok/s",
        ]
        text = fitting(parts, self._console.width - 1)
        room = self._console.width - len(text) - 2
        line = Table.grid(padding=(0, 1))
        if room >= _SHORTEST_BAR:
            bar = ProgressBar(total=now.steps, completed=now.step, width=min(room, 60))
            line.add_row(bar, Text(text, no_wrap=True))
        else:
            line.add_row(Text(text, no_wrap=True))
        return line

    def on_evaluation_part(self, trainer: Trainer, pl_module: LightningModule, line: str) -> None:
        """Show what is being evaluated, under the source's name."""
        name, _, rest = line.partition(": ")
        label = self.suite.abilities.get(name, name)
        text = f"evaluating {visible(label)} {rest}".rstrip()
        self._update(Text(text[: self._console.width - 1], no_wrap=True))

    @override
    def _show_evaluation(self, evaluation: Evaluation, seconds: float) -> None:
        cells = {
            label: self._cell(label, key, evaluation.scores[key])
            for label, key in self.suite.labels.items()
            if key in evaluation.scores
        }
        labels, titles = list(self.suite.labels), headings(self.suite)
        interval_widths = [max(len(title), _CELL) for title in titles]
        total = 6 + sum(width + 2 for width in interval_widths) + _TIME_WIDTH + 2
        is_wide = total <= self._console.width
        widths = interval_widths if is_wide else [max(len(title), 8) for title in titles]
        if not self._has_header:
            self._has_header = True
            self._print(
                Text(
                    _row("step", titles, widths, "time", "end of", self._console.width), style="dim"
                )
            )
        ended = self._stage_ended(evaluation.step)
        values = [
            cells[label][: 2 if is_wide else 1] if label in cells else ("-",) for label in labels
        ]
        self._print(
            Text(
                _row(
                    f"{evaluation.step:,}",
                    [" ".join(value) for value in values],
                    widths,
                    f"{seconds:,.0f} s",
                    visible(ended),
                    self._console.width,
                )
            )
        )

    def _cell(self, label: str, key: str, score: Score) -> tuple[str, str]:
        """Return a score with how far it has fallen, and its interval: ``89.5▼9``, ``[84-93]``."""
        shown = self.suite.shown
        fallen = round(100 * self.history.changes.get(f"forgetting/{label}", 0.0))
        is_unicode = "utf" in str(getattr(self.stream, "encoding", None) or "utf").lower()
        mark = f"{'▼' if is_unicode else 'v'}{fallen}" if fallen else ""
        in_percent = self.suite.is_percent(key)
        low, high = (
            f"{100 * bound:.0f}" if in_percent else f"{bound:.1f}"
            for bound in (score.low, score.high)
        )
        return f"{shown(key, score.value)}{mark}", f"[{low}-{high}]"

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_live()
        self._write_end(trainer)

    @override
    def _write_prose(self, text: str) -> None:
        self._print(Text(visible(text)), wraps=True)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_live()  # also after an error, which shows below


def fitting(parts: Sequence[str], width: int) -> str:
    """Join as many parts as fit a width, the most important ones first; none is cut.

    >>> fitting(["12 %", "math 3/9", "0:42 left", "loss 0.512"], 26)
    '12 %  math 3/9  0:42 left'
    """
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) <= width:
            text += f"  {part}"
    return text


def minutes_text(minutes: float) -> str:
    """Return a duration as people say it.

    >>> minutes_text(0.3), minutes_text(2.6), minutes_text(200.0)
    ('1 min', '3 min', '3.3 h')
    """
    return f"{max(1, round(minutes))} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _row(
    step: str, cells: Sequence[str], widths: Sequence[int], took: str, note: str, room: int
) -> str:
    """Return a row of the table; the note is left out where it does not fit."""
    aligned = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    row = "  ".join([step.rjust(6), *aligned, took.rjust(_TIME_WIDTH)])
    return f"{row}  {note}" if note and len(row) + 2 + len(note) <= room else row
