"""Test ``study --plan`` and ``--print``, run digests, and requests that a study refuses."""

import copy
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import IFEVAL
from hub_cache import HubCache
from lock_holder import held
from study_runs import STUDY
from tiny_lab import SCRIPTED, SCRIPTED_CONFIG, Lab

from sft_lab.errors import RequestError
from sft_lab.runs.store import DIGEST_TAG
from sft_lab.study.design import CellSpec, Resources
from sft_lab.study.digests import base_files_digest
from sft_lab.study.job import CELL_TAG
from sft_lab.study.processes import num_processes
from sft_lab.study.record import open_parent, study_digest
from sft_lab.study.runs import plan_run
from sft_lab.study.study import read_study_config


def test_a_study_is_planned_and_its_commands_printed(study_lab: Lab) -> None:
    printed = study_lab("study", "--config=study.yaml", "--print")
    assert printed.code == 0, printed.err
    commands = printed.out.splitlines()
    assert len(commands) == 2
    assert commands[0].startswith("sft-lab fit --config=mlruns/studies/tiny/cells/")
    plan = json.loads(study_lab("study", "--config=study.yaml", "--plan", "--json").out)
    assert (plan["cells"], plan["finished"], plan["minutes"]) == (3, 0, None)
    assert (plan["steps_to_train"], plan["steps_without_forks"]) == (5 + 5, 5 + 5 + 5)
    assert plan["runs"][1]["forked_from"] == "q math seed 0@first"


def refused(lab: Lab, **arm: Any) -> str:
    """Write the study with this arm alone and return the error it gives."""
    questions = {"q": {**STUDY["questions"]["q"], "arms": {"one": arm}}}
    lab.write("study.yaml", yaml.safe_dump({**STUDY, "questions": questions}, sort_keys=False))
    outcome = lab("study", "--config=study.yaml", "--plan")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    return outcome.err


def test_a_search_by_an_unknown_score_is_refused_up_front(study_lab: Lab) -> None:
    grid = {"k": {"values": ["1/4", 1], "keys": ["data.k"]}}
    search = {"axis": "k", "retention": {"world_mth/accuracy": 0.9}}
    error = refused(study_lab, config="./tiny.yaml", grid=grid, search=search)
    assert "no run measures 'world_mth/accuracy' (did you mean 'world_math/accuracy'?)" in error


def test_a_search_without_a_split_is_refused_up_front(study_lab: Lab) -> None:
    grid = {"k": {"values": ["1/4", 1], "keys": ["data.k"]}}
    search = {"axis": "k", "retention": {"world_math/accuracy": 0.9}}
    error = refused(study_lab, config="./tiny.yaml", grid=grid, search=search)
    assert "questions.q.arms.one.search chooses by scores" in error
    assert "set evaluation.split: 0.5" in error


def test_a_search_by_a_score_that_is_not_a_mean_over_items_is_refused_up_front(
    study_lab: Lab,
) -> None:
    rows = [json.dumps({**IFEVAL[0], "key": key}) for key in (7, 8)]
    study_lab.write("prompts.jsonl", "\n".join(rows))
    followed = {
        "class_path": "sft_lab.evaluation.benchmarks.ifeval.benchmark.IFEval",
        "init_args": {"path": "prompts.jsonl", "max_new_tokens": 2},
    }
    error = refused(
        study_lab,
        config="./tiny.yaml",
        set={"evaluation.benchmarks": {"followed": followed}, "evaluation.split": 0.5},
        grid={"k": {"values": ["1/4", 1], "keys": ["data.k"]}},
        search={"axis": "k", "retention": {"followed/instruction_strict": 0.9}},
    )
    assert "followed/instruction_strict is not a mean over items" in error
    means = "world_math/format_free, world_math/accuracy, followed/prompt_strict, "
    assert f"use one of: {means}followed/prompt_loose." in error


def search_alone(lab: Lab) -> None:
    """Write a study of one arm, which searches among 2 values with 2 seeds."""
    arm = {
        "config": "./tiny.yaml",
        "set": {"evaluation.split": 0.5},
        "grid": {"k": {"values": ["1/4", 1], "keys": ["data.k"]}},
        "search": {"axis": "k", "retention": {"world_math/format_free": 0.9}},
    }
    study = {**STUDY, "seeds": [0, 1], "questions": {"q": {"title": "?", "arms": {"finder": arm}}}}
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))


def test_a_wrong_key_of_a_cell_is_refused_and_the_cell_named(study_lab: Lab) -> None:
    error = refused(study_lab, config="./tiny.yaml", set={"data.stages.second.lrr": 1})
    assert "cell 'q one seed 0': --data.stages.second.lrr: unknown key" in error


def test_a_cell_without_a_logger_is_refused(study_lab: Lab) -> None:
    error = refused(study_lab, config="./tiny.yaml", set={"trainer.logger": None})
    assert "cell 'q one seed 0': trainer.logger must be sft_lab.runs.logger.RunLogger" in error


def test_cells_that_differ_in_a_callback_are_two_runs(study_lab: Lab) -> None:
    hook = [{"class_path": "lightning.pytorch.callbacks.Timer"}]
    arms = {
        "plain": {"config": "./math.yaml"},
        "hooked": {"config": "./math.yaml", "set": {"trainer.callbacks": hook}},
    }
    study = {**STUDY, "questions": {"q": {"title": "?", "arms": arms}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    plan = json.loads(study_lab("study", "--config=study.yaml", "--plan", "--json").out)
    assert [run["name"] for run in plan["runs"]] == ["q plain seed 0", "q hooked seed 0"]


def test_a_second_benchmark_of_a_source_is_an_ability_of_its_own(
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
    run = plan_run(CellSpec("q", "math", {}, 0, ("./math.yaml", "./more.yaml"), {}))
    assert run.abilities == {
        "math": "world_math/format_free",
        "again": "again/format_free",
        "untaught": "untaught/format_free",
    }
    assert run.sources == {"math": "math", "again": "math"}


@pytest.mark.parametrize("study", ["tiny", "study.yaml"])
def test_a_report_without_runs_is_refused_and_writes_nothing(study_lab: Lab, study: str) -> None:
    before = sorted(study_lab.folder.iterdir())
    outcome = study_lab("report", f"--study={study}", "--out=report")
    assert outcome.code == 2
    assert "mlruns/mlflow.db" in outcome.err
    assert sorted(study_lab.folder.iterdir()) == before


def test_only_the_report_is_logged_from_a_folder_with_other_files(study_lab: Lab) -> None:
    lab = study_lab
    parent = open_parent(lab.store, "sft_lab", None, "tiny", STUDY)
    cell = {"question": "q", "arm": "math", "axis": {}, "seed": 0, "run_id": None}
    cell |= {"control": "", "alone": ""}
    content = {
        "name": "tiny",
        "abilities": {},
        "sources": {},
        "questions": {"q": {"title": "?", "design": "grid"}},
        "cells": [cell],
        "searches": [],
    }
    lab.store.client.log_text(parent.run_id, json.dumps(content), "cells.json")
    outcome = lab("report", f"--study={parent.run_id}", "--out=.")
    assert outcome.code == 0, outcome.err
    logged = {a.path for a in lab.store.client.list_artifacts(parent.run_id, "report")}
    assert {"report/report.html", "report/report.md"} <= logged
    assert not {path for path in logged if path.endswith(("yaml", "mlruns"))}
    assert (lab.folder / "report.html").is_file()
    outcome = lab("report", "--results=results.json", "--out=again")  # without the store
    assert outcome.code == 0, outcome.err
    assert (lab.folder / "again/report.html").is_file()


def test_a_study_runs_question_by_question(study_lab: Lab) -> None:
    questions = {name: {"title": "?", "arms": {name: {"config": "./math.yaml"}}} for name in "ab"}
    study_lab.write("study.yaml", yaml.safe_dump({**STUDY, "questions": questions}))
    plan = study_lab("study", "--config=study.yaml", "--questions", "b", "--plan", "--json")
    assert json.loads(plan.out)["runs"][0]["cells"] == ["b b seed 0"]
    outcome = study_lab("study", "--config=study.yaml", "--questions", "c", "--plan")
    assert outcome.code == 2
    assert "--questions c: the study has no such question; it has a, b." in outcome.err


def digests(lab: Lab) -> list[str]:
    plan = json.loads(lab("study", "--config=study.yaml", "--plan", "--json").out)
    return [run["digest"] for run in plan["runs"]]


def test_changed_base_weights_change_every_digest(study_lab: Lab) -> None:
    before = digests(study_lab)
    world = study_lab.folder / "world"
    shutil.copytree(study_lab.world, world)
    lab = Lab(study_lab.folder, world)
    assert digests(lab) == before
    weights = bytearray((world / "base/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (world / "base/model.safetensors").write_bytes(weights)
    assert not set(digests(lab)) & set(before)


def test_a_changed_user_class_changes_digests(
    study_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "scripted", raising=False)  # another test's
    study_lab.write("scripted.py", SCRIPTED)
    study_lab.write("scripted.yaml", SCRIPTED_CONFIG)
    arms = {"one": {"config": "./math.yaml", "also": ["./scripted.yaml"]}}
    study = {**STUDY, "questions": {"q": {"title": "?", "arms": arms}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    before = digests(study_lab)
    assert digests(study_lab) == before
    study_lab.write("scripted.py", SCRIPTED.replace("(0, 2, 3, 1, 2)", "(4, 4, 4, 4, 4)"))
    assert digests(study_lab) != before


def test_a_hub_name_is_identified_by_its_commit(hub_cache: HubCache, tiny_base: Path) -> None:
    old = hub_cache.add_model("someone/base", tiny_base, branch="old")
    new = hub_cache.add("model", "someone/base", {"config.json": b"{}"})
    assert base_files_digest("someone/base") == f"someone/base@{new}"
    assert base_files_digest("someone/base@old") == f"someone/base@{old}"


def test_a_study_that_another_process_runs_is_refused(study_lab: Lab) -> None:
    _, config = read_study_config([f"--config={study_lab.folder / 'study.yaml'}"])
    with held(study_lab.folder / "mlruns/studies/tiny" / study_digest(config)):
        outcome = study_lab("study", "--config=study.yaml")
    assert outcome.code == os.EX_TEMPFAIL
    assert "study tiny is being trained by another process" in outcome.err
    assert not study_lab.runs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.quantization", "nf5", "model.quantization must be nf4, int8, bf16 or fp32"),
        ("model.lora", None, "model.lora is null, but a nf4 base cannot be trained in full"),
        ("model.lora.r", 0, "model.lora.r must be 1 or more, got 0"),
        (
            "trainer.gradient_clip_val",
            "abc",
            "trainer.gradient_clip_val must be a number, 0 or more and finite, or null, got abc",
        ),
        ("trainer.devices", 3, "data.batch_size counts the sequences of all devices"),
        ("trainer.devices", 2, "resources.cpus reserves 1 for a run, whose trainer.devices is 2"),
        ("trainer.max_epochs", 3, "trainer.max_epochs follows from data.stages"),
        ("checkpoint.every_n_steps", 0, "checkpoint.every_n_steps must be 1 or more, got 0"),
    ],
)
def test_a_value_that_fit_would_refuse_is_refused_and_the_cell_named(
    study_lab: Lab, key: str, value: Any, message: str
) -> None:
    error = refused(study_lab, config="./tiny.yaml", set={"model.quantization": "nf4", key: value})
    assert error.startswith("error: cell 'q one seed 0': ")
    assert message in error


@pytest.mark.parametrize(
    ("devices", "resources", "expected"),
    [
        (1, Resources(gpus=2), "resources.gpus reserves 2 for a run, whose trainer.devices is 1"),
        (2, Resources(gpus=0.5), "resources.gpus reserves 0.5 for a run, whose trainer.devices"),
        (2, Resources(cpus=1), "resources.cpus reserves 1 for a run, whose trainer.devices is 2"),
        ("two", Resources(gpus=2), "trainer.devices must be a number, a list .*, got two"),
        (2, Resources(cpus=2), 2),
        (2, Resources(gpus=2), 2),
        ("auto", Resources(gpus=2), 2),
        ("auto", Resources(cpus=2), 1),
        ([0, 3], Resources(gpus=2), 2),
        ("0,3", Resources(gpus=2), 2),
        (1, Resources(gpus=0.5), 1),
        (1, Resources(cpus=8), 1),
    ],
)
def test_a_run_gets_as_many_cores_or_gpus_as_it_has_devices(
    devices: int | str | list[int], resources: Resources, expected: int | str
) -> None:
    # GPUs that the workers have, and this machine may lack.
    accelerator = "gpu" if resources.gpus else "cpu"
    trainer = {"devices": devices, "num_nodes": 1, "accelerator": accelerator}
    if isinstance(expected, int):
        assert num_processes(resources, trainer) == expected
    else:
        with pytest.raises(RequestError, match=expected):
            num_processes(resources, trainer)


def test_writing_out_a_default_changes_no_digest(study_lab: Lab) -> None:
    arms = {
        "short": {"config": "./math.yaml"},
        "long": {"config": "./math.yaml", "set": {"data.order": "even", "trainer.callbacks": None}},
    }
    study = {**STUDY, "questions": {"q": {"title": "?", "arms": arms}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    assert len(digests(study_lab)) == 1


def finish_elsewhere(lab: Lab, digest: str) -> None:
    """Record a finished run as a printed command does."""
    client = lab.store.client
    known = client.get_experiment_by_name("sft_lab")
    experiment = known.experiment_id if known else client.create_experiment("sft_lab")
    run = client.create_run(experiment, tags={DIGEST_TAG: "d", CELL_TAG: digest})
    client.set_terminated(run.info.run_id, "FINISHED")


def test_a_finished_study_needs_no_ray(study_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = digests(study_lab)
    assert study_lab("study", "--config=study.yaml", "--print").out
    outcome = study_lab("study", "--config=study.yaml")
    assert outcome.code == 2
    assert "Ray, which is not installed" in outcome.err
    for digest in missing:
        finish_elsewhere(study_lab, digest)
    outcome = study_lab("study", "--config=study.yaml")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 runs finished." in outcome.out


def test_searches_are_named_as_not_printed(study_lab: Lab) -> None:
    search_alone(study_lab)
    printed = study_lab("study", "--config=study.yaml", "--print")
    assert (printed.code, printed.out.strip()) == (0, "")
    assert "q finder" in printed.err


def test_a_plan_includes_what_searches_may_add(study_lab: Lab) -> None:
    search_alone(study_lab)
    plan = json.loads(study_lab("study", "--config=study.yaml", "--plan", "--json").out)
    (search,) = plan["searches"]
    assert search == {
        "question": "q",
        "arm": "finder",
        "runs_at_most": 4,
        "steps_at_most": 2 * (5 + 7 + 10),  # the first stage once per seed
        "minutes_at_most": None,
    }
    assert (plan["cells"], plan["steps_to_train"]) == (0, 0)
    text = study_lab("study", "--config=study.yaml", "--plan").out
    assert "q finder searches in up to 4 more runs" in text


def test_a_study_in_json_is_one_object(study_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in digests(study_lab):
        finish_elsewhere(study_lab, digest)
    outcome = study_lab("study", "--config=study.yaml", "--json")
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert (printed["name"], printed["finished"], printed["failed"]) == ("tiny", 2, 0)
    assert [(run["name"], run["state"]) for run in printed["runs"]] == [
        ("q math seed 0", "finished"),
        ("q both k=0 seed 0", "finished"),
    ]
    outcome = study_lab("study", "--config=study.yaml", "--print", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--print" in outcome.err
