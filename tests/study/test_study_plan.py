"""Test the text of ``study --plan``: a row for all seeds, a total, warnings said once."""

import logging
from typing import Any

import pytest

from sft_lab.study.cell_warnings import warnings_by_cell
from sft_lab.study.plan import plan_table


def planned(name: str, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"{name} seed {seed}",
        "state": "missing",
        "steps": 1000,
        "steps_to_train": 600,
        "tokens": 2000,
        "minutes": 1.5,
        "memory": 3 * 2**20,
        "forked_from": None,
        **changes,
    }


def plan_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cells": 4,
        "finished": 1,
        "steps_to_train": 1200,
        "steps_without_forks": 2000,
        "minutes": 3.0,
        "minutes_at_most": 3.0,
        "searches": [],
        "runs": runs,
    }


def test_seeds_are_a_count_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {"state": "finished", "steps_to_train": 0, "minutes": 0.0}
    runs = [planned("q math", 0, **done), planned("q math", 1), planned("q code", 0)]
    lines = plan_table(plan_of(runs)).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["q", "math", "2", "1", "2,000", "600", "4,000", "1.5", "3.0", "MiB"],
        ["q", "code", "1", "0", "1,000", "600", "2,000", "1.5", "3.0", "MiB"],
        ["all", "3", "1", "3,000", "1,200", "6,000", "3.0", "3.0", "MiB"],
    ]
    assert "forked" not in lines[0]
    runs.append(planned("q code", 1, forked_from="q math seed 1@first"))
    assert plan_table(plan_of(runs)).splitlines()[2].endswith("q math@first")
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, plan_table(plan_of(runs)).splitlines())) <= 40


def test_what_is_unknown_is_a_dash() -> None:
    lines = plan_table(plan_of([planned("q", 0, minutes=None, memory=None)])).splitlines()
    assert lines[1].split()[-2:] == ["-", "-"]


def test_a_warning_of_many_cells_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("sft_lab.training.data_modules")
    with warnings_by_cell() as begin:
        for cell in (0, 1, 0):  # a study may plan its cells twice
            begin(cell)
            log.warning("few rows")
        assert caplog.messages == []
    assert caplog.messages == ["few rows (2 cells)"]
