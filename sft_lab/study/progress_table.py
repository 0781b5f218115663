"""Show a study's progress: a live table on a terminal, elsewhere a line for every change."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from textwrap import shorten
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sft_lab.runs.store import RunStore
from sft_lab.study.job import CELL_TAG
from sft_lab.study.runner import Progress
from sft_lab.terminal import counted, visible

_STYLES = {"finished": "green", "failed": "bold red", "running": "yellow"}
_MOST_ROWS = 30


class ProgressTable:
    """Shows the progress of a study's runs.

    Args:
        store: The store, from which the steps of running runs are read.
        stream: Stream to write to.
    """

    def __init__(self, store: RunStore, stream: TextIO = sys.stderr) -> None:
        self.store = store
        self.console = Console(file=stream)
        self.began = time.monotonic()
        self._printed: dict[str, tuple[Any, ...]] = {}
        self._live: Live | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "ProgressTable":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=False)
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, progress: Mapping[str, Progress]) -> None:
        """Show the progress of all runs."""
        if self._live is not None:
            self._live.update(self._table(progress, _steps_taken(self.store)), refresh=True)
            return
        for digest, p in progress.items():
            now = (p.state, p.attempts, p.losses)
            if self._printed.get(digest) != now and (p.state != "waiting" or p.reason):
                reason = f": {p.reason}" if p.reason else ""
                again = ", will be retried" if p.reason and p.state != "failed" else ""
                done = sum(q.state == "finished" for q in progress.values())
                state = "found finished" if p.was_there else p.state
                line = (
                    f"{self._minutes()} {done}/{len(progress)} {p.run.name}: {state}{again}{reason}"
                )
                self.console.print(visible(line), highlight=False, soft_wrap=True, markup=False)
            self._printed[digest] = now

    def _minutes(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _table(self, progress: Mapping[str, Progress], steps: Mapping[str, int]) -> Table:
        done = sum(p.state == "finished" for p in progress.values())
        table = Table(
            title=f"{self._minutes().strip()}  {done} of {counted(len(progress), 'run')} finished"
        )
        for column in ("run", "state", "step", "of", "crashes", ""):
            table.add_column(column, justify="right" if column in ("step", "of") else "left")
        for digest, p in _rows_to_show(progress):
            total = sum(p.run.steps.values())
            running = p.state in ("queued", "busy") and digest in steps
            state = "running" if running else p.state
            step = total if p.state == "finished" else steps.get(digest, 0)
            table.add_row(
                Text(visible(p.run.name)),
                Text(state, _STYLES.get(state, "")),
                str(step) if running or p.state == "finished" else "",
                str(total),
                str(p.attempts or ""),
                # As Text, not markup: a reason may contain brackets.
                Text(shorten(visible(p.reason), 60, placeholder=" \N{HORIZONTAL ELLIPSIS}")),
            )
        return table


def _rows_to_show(progress: Mapping[str, Progress]) -> list[tuple[str, Progress]]:
    """Return all runs, or if they do not fit on a screen, the unfinished ones first."""
    rows = list(progress.items())
    if len(rows) <= _MOST_ROWS:
        return rows
    order = {"failed": 0, "queued": 1, "busy": 2, "waiting": 3, "finished": 4}
    return sorted(rows, key=lambda row: order[row[1].state])[:_MOST_ROWS]


def _steps_taken(store: RunStore) -> dict[str, int]:
    """Return the last logged step of every running run, by digest."""
    found: dict[str, int] = {}
    for run in store.runs():
        digest = run.data.tags.get(CELL_TAG)
        if digest and run.info.status == "RUNNING":
            samples = store.client.get_metric_history(run.info.run_id, "progress/samples")
            found[digest] = max((point.step for point in samples), default=0)
    return found
