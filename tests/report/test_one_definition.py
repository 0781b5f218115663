"""A run's metrics, compare and a report show the same numbers."""

import json

import pytest
from tiny_lab import Lab

from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.report.report import build_report
from sft_lab.runs.results import ItemAnswer, RunResult, read_answers, read_result

KEY = "scripted/accuracy"


def test_forgetting_is_the_same_in_the_log_in_compare_and_in_a_report(lab: Lab) -> None:
    outcome = lab.fit("--config=scripted.yaml", f"--evaluation.primary={{math: {KEY}}}")
    assert outcome.code == 0, outcome.err
    store, run_id = lab.store, lab.run.info.run_id
    result = read_result(store, lab.run)

    def read(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        return read_answers(store, run.run_id, benchmark, step)

    cells = [Cell("q", "tiny", {}, 0, result)]
    question = Question("q", "?", "strategies", cells)
    study = StudyResults("s", {"math": KEY}, {"math": "math"}, [question])
    report = build_report(study, read)
    [cell] = report.tables["cells.csv"].rows
    [drop] = report.tables["comparisons.csv"].rows
    items = report.tables["items.csv"].rows

    outcome = lab("compare", run_id, "--json")
    assert outcome.code == 0, outcome.err
    compared = json.loads(outcome.out)
    [of_run] = compared["runs"]
    [test] = [found for found in compared["forgetting"] if found["key"] == KEY]

    # 3 of 4 items after the first stage, 2 at the end.
    assert cell["forgetting"] == pytest.approx(0.25)
    assert cell["retention"] == pytest.approx(2 / 3)
    for name in ("forgetting", "retention", "backward_transfer"):
        logged = lab.points(f"{name}/math")[12]
        assert cell[name] == of_run["changes"][KEY][name] == pytest.approx(logged)
    assert drop["before"] == test["before"].replace(result.name, "tiny") == "tiny after first"
    assert drop["difference"] == test["difference"]["value"] == -cell["forgetting"]
    assert drop["p"] == test["difference"]["p"]
    assert [item["id"] for item in items] == test["lost"] == ["math/2"]
    assert [item["id"] for item in of_run["changed_items"]["scripted"]] == ["math/2"]
