"""Build a report with a section from outside the package: one file and a line of YAML."""

import json

import pytest
import yaml
from docs_blocks import code_block
from study_runs import STUDY
from tiny_lab import Lab

from sft_lab.study.record import open_parent, study_digest

NOTHING = """

class Nothing(ReportSection):
    def build(self, context):
        return None
"""
SECTIONS = [
    {"class_path": "my_sections.Cells", "init_args": {"title": "All cells"}},
    {"class_path": "my_sections.Nothing"},
]


@pytest.fixture
def recorded(study_lab: Lab) -> tuple[Lab, str]:
    """A lab with a recorded study whose config adds report sections; none of its cells has run."""
    lab = study_lab
    study = {**STUDY, "report": {"sections": SECTIONS}}
    lab.write("my_sections.py", code_block("# my_sections.py") + NOTHING)
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    parent = open_parent(lab.store, "sft_lab", None, "tiny", study)
    content = {
        "name": "tiny",
        "abilities": {},
        "sources": {},
        "questions": {"q": {"title": "?", "design": "grid"}},
        "cells": [
            {"question": "q", "arm": "math", "axis": {}, "seed": 3, "run_id": None}
            | {"control": "", "alone": ""}
        ],
        "searches": [],
    }
    lab.store.client.log_text(parent.run_id, json.dumps(content), "cells.json")
    return lab, parent.run_id


def test_a_section_of_the_users_own_is_found_by_class_path(recorded: tuple[Lab, str]) -> None:
    lab, run_id = recorded
    for study in ("study.yaml", run_id):
        outcome = lab("report", f"--study={study}", "--out=out")
        assert outcome.code == 0, outcome.err
        headings = [
            line.removeprefix("## ")
            for line in (lab.folder / "out/report.md").read_text().splitlines()
            if line.startswith("## ")
        ]
        assert headings[-2:] == ["All cells", "How it was measured and tested"]
        assert "After q." in (lab.folder / "out/report.html").read_text()


def test_a_wrong_section_is_refused_before_anything_runs(recorded: tuple[Lab, str]) -> None:
    lab, _ = recorded
    wrong = {**STUDY, "report": {"sections": [{"class_path": "my_sections.Cell"}]}}
    lab.write("study.yaml", yaml.safe_dump(wrong))
    outcome = lab("study", "--config=study.yaml", "--print")
    assert outcome.code == 2
    assert "report.sections.0: cannot import my_sections.Cell: module" in outcome.err
    assert "Traceback" not in outcome.err


def test_report_sections_do_not_change_the_digest_of_a_study() -> None:
    assert study_digest({**STUDY, "report": {"sections": SECTIONS}}) == study_digest(STUDY)
