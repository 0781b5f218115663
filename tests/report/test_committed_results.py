"""The committed report and the sentences in the docs are those of the committed results files."""

from pathlib import Path

import pytest

from sft_lab.commands.study_report import make_report_of_files

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "results" / "world_paper"

pytestmark = pytest.mark.slow


def test_the_committed_report_is_built_from_the_committed_files(tmp_path: Path) -> None:
    files = sorted(FOLDER.glob("rq*.json"))
    assert len(files) >= 3
    page = make_report_of_files(files, tmp_path)
    assert page.read_text(encoding="utf-8") == (FOLDER / page.name).read_text(encoding="utf-8")
    answers = [
        line
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("**rq")
    ]
    assert len(answers) == len(files)
    shown = (DOCS / "results.md").read_text(encoding="utf-8").splitlines()
    assert set(answers) <= set(shown)
    assert page.stat().st_size < 1_000_000
