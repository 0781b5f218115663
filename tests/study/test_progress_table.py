import io
from pathlib import Path

from tiny_lab import Terminal

from sft_lab.runs.store import RunStore
from sft_lab.study.design import CellSpec
from sft_lab.study.progress_table import ProgressTable
from sft_lab.study.runner import Progress
from sft_lab.study.runs import StudyRun


def progress(name: str, state: str, reason: str = "") -> dict[str, Progress]:
    cell = CellSpec("q", name, {}, 0, ())
    run = StudyRun(name, (cell,), {"a": 7}, 0, 0, {"a": "a"}, "b", {}, {})
    return {name: Progress(run, state, reason=reason)}  # type: ignore[arg-type]


def show(tmp_path: Path, stream: io.StringIO, *shown: dict[str, Progress]) -> str:
    with ProgressTable(RunStore(f"sqlite:///{tmp_path}/none.db"), stream) as table:
        for one in shown:
            table(one)
    return stream.getvalue()


def test_a_terminal_gets_a_table_with_reasons_as_they_are(tmp_path: Path) -> None:
    rows = progress("good", "finished") | progress("bad", "failed", "no [/folder] there")
    said = show(tmp_path, Terminal(), rows)
    assert "1 of 2 runs finished" in said
    assert "no [/folder] there" in said


def test_a_long_reason_ends_with_a_whole_word(tmp_path: Path) -> None:
    reason = (
        "Task failed because the node it was running on is dead or unavailable. Node IP: 10.0.0.2"
    )
    said = show(tmp_path, Terminal(), progress("lost", "queued", reason))
    words = " ".join(said.replace("\u2502", " ").split())
    assert "or \u2026" in words
    assert "unav" not in words


def test_of_many_runs_those_that_are_not_finished_come_first(tmp_path: Path) -> None:
    finished = {}
    for n in range(40):
        finished |= progress(f"done{n}", "finished")
    said = show(tmp_path, Terminal(), finished | progress("shared", "busy", "still runs"))
    assert "q shared seed 0" in said
    assert "busy" in said
    assert "still runs" in said


def test_elsewhere_every_change_is_a_line_and_nothing_is_said_twice(tmp_path: Path) -> None:
    first, then = progress("one", "queued"), progress("one", "finished")
    lines = show(tmp_path, io.StringIO(), first, first, then, then).splitlines()
    assert [line[len("  0:00 ") :] for line in lines] == [
        "0/1 q one seed 0: queued",
        "1/1 q one seed 0: finished",
    ]
