"""What a study says before it runs, and what it refuses."""

import json
from typing import Any

import pytest
import yaml
from benchmark_files import IFEVAL
from runs import Lab
from study_runs import STUDY

from sft_lab.study.parent_run import open_parent


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


def test_a_search_by_a_score_that_is_no_mean_over_items_is_refused_before_any_runs(
    study_lab: Lab,
) -> None:
    study_lab.write("prompts.jsonl", json.dumps(IFEVAL[0]) + "\n")
    told = {
        "class_path": "sft_lab.evaluation.ifeval_benchmark.IFEval",
        "init_args": {"path": "prompts.jsonl", "max_new_tokens": 2},
    }
    said = changed(
        study_lab,
        config="./tiny.yaml",
        set={"evaluation.benchmarks": {"followed": told}},
        grid={"k": {"values": ["1/4", 1], "keys": ["data.k"]}},
        search={"axis": "k", "retention": {"followed/instruction_strict": 0.9}},
    )
    assert "followed/instruction_strict is no mean of marks of items" in said
    assert "these are: world_math/accuracy, followed/prompt_strict, followed/prompt_loose." in said


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


@pytest.mark.parametrize("study", ["tiny", "study.yaml"])
def test_a_report_of_nothing_is_refused_and_makes_nothing(study_lab: Lab, study: str) -> None:
    before = sorted(study_lab.folder.iterdir())
    outcome = study_lab("report", f"--study={study}", "--out=report")
    assert outcome.code == 2
    assert "mlruns/mlflow.db" in outcome.err
    assert sorted(study_lab.folder.iterdir()) == before


def test_only_the_report_is_filed_of_a_folder_that_holds_more(study_lab: Lab) -> None:
    lab = study_lab
    parent = open_parent(lab.store, "sft_lab", None, "tiny", STUDY)
    cell = {"question": "q", "arm": "math", "axis": {}, "seed": 0, "run_id": None}
    content = {
        "name": "tiny",
        "abilities": {},
        "questions": {"q": {"title": "?", "design": "grid"}},
        "cells": [cell],
        "searches": [],
    }
    lab.store.client.log_text(parent.run_id, json.dumps(content), "cells.json")
    outcome = lab("report", f"--study={parent.run_id}", "--out=.")
    assert outcome.code == 0, outcome.err
    filed = {a.path for a in lab.store.client.list_artifacts(parent.run_id, "report")}
    assert {"report/report.html", "report/report.md"} <= filed
    assert not {path for path in filed if path.endswith(("yaml", "mlruns"))}
    assert (lab.folder / "report.html").is_file()
