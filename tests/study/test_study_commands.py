"""What a study says before it runs, and what it refuses."""

import copy
import json
from typing import Any

import pytest
import yaml
from runs import Lab
from study_runs import STUDY

from sft_lab.study.design import CellSpec
from sft_lab.study.runs import plan_run


def test_commands_for_elsewhere_and_the_plan(study_lab: Lab) -> None:
    printed = study_lab("study", "--config=study.yaml", "--print")
    assert printed.code == 0, printed.err
    commands = printed.out.splitlines()
    assert len(commands) == 2
    assert commands[0].startswith("python -m sft_lab fit --config=./math.yaml ")
    plan = json.loads(study_lab("study", "--config=study.yaml", "--plan", "--json").out)
    assert (plan["cells"], plan["finished"], plan["minutes"]) == (3, 0, None)
    assert (plan["steps_to_train"], plan["steps_without_forks"]) == (5 + 5, 5 + 5 + 5)
    assert plan["runs"][1]["forked_from"] == "q math seed 0@first"


def changed(lab: Lab, **arm: Any) -> str:
    """Write the study with one more arm and return what is said of it."""
    questions = {"q": {**STUDY["questions"]["q"], "arms": {"one": arm}}}
    lab.write("study.yaml", yaml.safe_dump({**STUDY, "questions": questions}, sort_keys=False))
    outcome = lab("study", "--config=study.yaml", "--plan")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    return outcome.err


def test_a_search_by_a_score_that_no_run_has_is_refused_before_any_runs(study_lab: Lab) -> None:
    grid = {"k": {"values": ["1/4", 1], "keys": ["data.k"]}}
    search = {"axis": "k", "retention": {"world_mth/accuracy": 0.9}}
    said = changed(study_lab, config="./tiny.yaml", grid=grid, search=search)
    assert "no run measures 'world_mth/accuracy' (did you mean 'world_math/accuracy'?)" in said


def test_a_wrong_key_of_a_cell_is_refused_with_the_cell(study_lab: Lab) -> None:
    said = changed(study_lab, config="./tiny.yaml", set={"data.stages.second.lrr": 1})
    assert "cell 'q one seed 0': --data.stages.second.lrr: unknown key" in said


def test_a_cell_without_a_logger_is_refused(study_lab: Lab) -> None:
    said = changed(study_lab, config="./tiny.yaml", set={"trainer.logger": None})
    assert "cell 'q one seed 0': trainer.logger must be sft_lab.tracking.RunLogger" in said


def test_runs_that_differ_in_a_callback_are_two(study_lab: Lab) -> None:
    hook = [{"class_path": "lightning.pytorch.callbacks.Timer"}]
    arms = {
        "plain": {"config": "./math.yaml"},
        "hooked": {"config": "./math.yaml", "set": {"trainer.callbacks": hook}},
    }
    study = {**STUDY, "questions": {"q": {"title": "?", "arms": arms}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    plan = json.loads(study_lab("study", "--config=study.yaml", "--plan", "--json").out)
    assert [run["name"] for run in plan["runs"]] == ["q plain seed 0", "q hooked seed 0"]


def test_a_source_may_have_a_second_benchmark(
    study_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study_lab.folder)
    monkeypatch.setenv("SFT_LAB_WORLD", str(study_lab.world))
    math = yaml.safe_load((study_lab.folder / "math.yaml").read_text())
    again = copy.deepcopy(math["evaluation"]["benchmarks"]["world_math"])
    untaught = copy.deepcopy(again)
    untaught["init_args"]["source"] = None
    benchmarks = {"again": again, "untaught": untaught}
    study_lab.write("more.yaml", yaml.safe_dump({"evaluation": {"benchmarks": benchmarks}}))
    arguments = ("--config=./math.yaml", "--config=./more.yaml")
    run = plan_run(CellSpec("q", "math", {}, 0, arguments))
    assert run.abilities == {
        "math": "world_math/accuracy",
        "again": "again/accuracy",
        "untaught": "untaught/accuracy",
    }
    assert run.sources == {"math": "math", "again": "math"}


@pytest.mark.parametrize("study", ["tiny", "study.yaml"])
def test_a_report_of_nothing_is_refused_and_makes_nothing(study_lab: Lab, study: str) -> None:
    before = sorted(study_lab.folder.iterdir())
    outcome = study_lab("report", f"--study={study}", "--out=report")
    assert outcome.code == 2
    assert "mlruns/mlflow.db" in outcome.err
    assert sorted(study_lab.folder.iterdir()) == before
