import io
from pathlib import Path
from typing import cast

from tiny_lab import Terminal

from sft_lab.launch.run_config import RunConfig
from sft_lab.runs.store import RunStore
from sft_lab.study.design import CellSpec
from sft_lab.study.progress_table import ProgressTable
from sft_lab.study.runner import Progress
from sft_lab.study.runs import StudyRun


def progress(name: str, state: str, reason: str = "") -> dict[str, Progress]:
    cell = CellSpec("q", name, {}, 0, (), {})
    run = StudyRun(name, (cell,), {"a": 7}, 0, 0, {"a": "a"}, "b", cast(RunConfig, None), {})
    return {name: Progress(run, state, reason=reason)}  # type: ignore[arg-type]


def show(tmp_path: Path, stream: io.StringIO, *shown: dict[str, Progress]) -> str:
    with ProgressTable(RunStore(f"sqlite:///{tmp_path}/none.db"), stream) as table:
        for rows in shown:
            table(rows)
    return stream.getvalue()


def test_a_terminal_gets_a_table_with_reasons_verbatim(tmp_path: Path) -> None:
    rows = progress("good", "finished") | progress("bad", "failed", "no [/folder] there")
    shown = show(tmp_path, Terminal(), rows)
    assert "1 of 2 runs finished" in shown
    assert "no [/folder] there" in shown


def test_a_long_reason_is_cut_after_a_whole_word(tmp_path: Path) -> None:
    reason = (
        "Task failed because the node it was running on is dead or unavailable. Node IP: 10.0.0.2"
    )
    shown = show(tmp_path, Terminal(), progress("lost", "queued", reason))
    words = " ".join(shown.replace("\u2502", " ").split())
    assert "or \u2026" in words
    assert "unav" not in words


def test_of_many_runs_the_unfinished_ones_come_first(tmp_path: Path) -> None:
    finished = {}
    for n in range(40):
        finished |= progress(f"done{n}", "finished")
    shown = show(tmp_path, Terminal(), finished | progress("shared", "busy", "still running"))
    assert "q shared seed 0" in shown
    assert "busy" in shown
    assert "still running" in shown


def test_without_a_terminal_every_change_is_printed_once(tmp_path: Path) -> None:
    first, then = progress("one", "queued"), progress("one", "finished")
    lines = show(tmp_path, io.StringIO(), first, first, then, then).splitlines()
    assert [line[len("  0:00 ") :] for line in lines] == [
        "0/1 q one seed 0: queued",
        "1/1 q one seed 0: finished",
    ]
