"""Run the tiny config from the command line; check its MLflow record and its output."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_lab import EVALUATED_STEPS, FinishedRun, Lab, Terminal

from sft_lab.evaluation import budget
from sft_lab.training.schedule import stage_lr
from sft_lab.training.stage import Stage


def test_a_run_records_its_name_tags_and_parameters(finished: FinishedRun) -> None:
    run = finished.lab.run
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny k=1/4 seed 0"
    tags = run.data.tags
    assert (tags["strategy"], tags["stages"], tags["base"]) == (
        "tiny",
        "first, second",
        "world://base",
    )
    assert len(tags["git.commit"]) == 40
    assert tags["git.dirty"] in ("true", "false")
    params = run.data.params
    assert params["data.stages.second.mixture.math"] == "1/4"
    assert params["model.lora.lora_dropout"] == "0.1"
    assert "version.torch" in params


def test_a_run_has_the_users_name_and_tags_next_to_the_labs(lab: Lab) -> None:
    tags = '{"mlflow.parentRunId": "1f", "sft_lab.cell": "dmt, seed 0", "strategy": "mine"}'
    logger = "--trainer.logger.init_args"
    outcome = lab(
        "validate", "--config=tiny.yaml", f"{logger}.tags={tags}", f"{logger}.run_name=cell 3"
    )
    assert outcome.code == 0, outcome.err
    assert lab.run.info.run_name == "cell 3"
    found = lab.run.data.tags
    assert found["mlflow.parentRunId"] == "1f"
    assert found["sft_lab.cell"] == "dmt, seed 0"
    assert (found["strategy"], found["command"]) == ("tiny", "validate")  # the lab's own win


def test_config_plan_and_samples_are_recorded(finished: FinishedRun) -> None:
    lab = finished.lab
    config = yaml.safe_load(lab.artifact("config.yaml").read_text())
    assert config["data"]["stages"]["second"]["mixture"] == {"general": 1, "math": "1/4"}
    plan = lab.json("record.json")
    assert [stage["steps"] for stage in plan["stages"].values()] == [5, 7]
    assert plan["stages"]["second"]["trained"]["math"]["samples"] == 5
    math = plan["sources"]["math"]
    assert (math["path"], math["rows"], math["held_out"]) == ("world://data/math.jsonl", 24, 4)
    assert (math["report"]["rows"], math["report"]["dropped"]) == (24, {})
    assert all(len(source["digest"]) == 64 for source in plan["sources"].values())
    samples = lab.artifact("samples/second.tsv").read_text().splitlines()
    assert samples[0] == "source\tsample_id\ttimes"
    assert len(samples) == 1 + 25
    assert sum(line.startswith("math\t") for line in samples) == 5
    written = lab.artifact("samples/second.tsv").read_bytes()
    digest = plan["stages"]["second"]["manifest_digest"]
    assert digest == hashlib.sha256(written).hexdigest()
    windows = [line.split("\t") for line in lab.artifact("windows/second.tsv").open()][1:]
    assert {int(step) for step, *_ in windows} == set(range(1, 8))
    for column, key in ((2, "samples"), (3, "tokens"), (4, "target_tokens")):
        in_windows = sum(int(row[column]) for row in windows if row[1] == "math")
        assert in_windows == plan["stages"]["second"]["trained"]["math"][key]


def test_scores_are_measured_before_between_and_after_the_stages(finished: FinishedRun) -> None:
    scores = finished.lab.points("scripted/accuracy")
    assert scores == dict(zip(EVALUATED_STEPS, [0, 0.5, 0.75, 0.25, 0.5], strict=True))
    for key in ("world_math/format_free", "val_loss/math", "val_loss/general", "progress/tokens"):
        assert set(EVALUATED_STEPS) <= set(finished.lab.points(key)), key


def test_every_step_is_logged_on_shared_axes(finished: FinishedRun) -> None:
    lab = finished.lab
    steps = list(range(1, 13))
    for key in ("train_loss/all", "lr", "speed/tokens_per_s", "time/eval_share"):
        assert list(lab.points(key)) == steps, key
    # 5 windows of 4 rows, then 25 rows: 6 windows of 4 and one of 1.
    samples = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 45]
    assert list(lab.points("progress/samples").values()) == samples
    assert list(lab.points("progress/stage").values()) == [0] * 5 + [1] * 8
    math, general = (set(lab.points(f"train_loss/{source}")) for source in ("math", "general"))
    assert min(general) == 6
    assert math | general == set(steps)
    assert 0 < lab.points("time/eval_share")[12] < 1


def test_the_learning_rate_of_every_step_follows_the_schedule(finished: FinishedRun) -> None:
    first, second = Stage({"math": 1}, lr=1e-2), Stage({"general": 1}, lr=5e-3)
    rates = [stage_lr(first, step, 5) for step in range(5)]
    rates += [stage_lr(second, step, 7) for step in range(7)]
    assert list(finished.lab.points("lr").values()) == pytest.approx(rates)
    assert rates[0] == 1e-2  # one step of warm-up


def test_every_answer_is_recorded(finished: FinishedRun) -> None:
    for step in EVALUATED_STEPS:
        table = finished.lab.json(f"answers/step_{step:06d}/scripted.json")
        assert table["columns"] == [
            "id",
            "item",
            "split",
            "accuracy",
            "reason",
            "completion",
            "expected",
            "prompt",
        ]
        assert len(table["data"]) == 4
    assert {row[2] for row in table["data"]} == {"all"}
    assert [row[3] for row in table["data"]] == [True, True, False, False]
    assert table["data"][0][7] == "math: what is 0 plus 1?"


def test_peft_loads_the_adapter_of_every_stage(finished: FinishedRun, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sft_lab.commands.trained_model import load_trained

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(5, 25)[None]).logits

    def with_adapter(stage: str) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        return logits(PeftModel.from_pretrained(base, finished.lab.artifact(f"stages/{stage}")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_LAB_WORLD", str(finished.lab.world))
        trained, _ = load_trained(finished.lab.checkpoint)
    assert torch.equal(with_adapter("second"), logits(trained))
    assert not torch.allclose(with_adapter("first"), logits(trained), atol=1e-3)


def test_the_run_page_shows_abilities_and_data_sets(finished: FinishedRun) -> None:
    run = finished.lab.run
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("<div>Forgetting in this run (1 seed): math never above chance.</div>\n")
    assert "|&nbsp; first |&nbsp; second |\n" in note
    assert finished.lab.artifact("abilities.png").stat().st_size > 1000
    page = finished.lab.artifact("abilities.html").read_text(encoding="utf-8")
    assert page.count("<tr>") == 1 + len(EVALUATED_STEPS)
    inputs = {found.dataset.name: found for found in run.inputs.dataset_inputs}
    record = finished.lab.json("record.json")
    assert inputs["math"].dataset.digest == record["sources"]["math"]["digest"][:36]
    assert inputs["math"].tags[0].value == "training"
    assert inputs["world_math"].tags[0].value == "evaluation"
    experiment = finished.lab.store.client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_log_file_gets_plain_lines(finished: FinishedRun) -> None:
    out = finished.outcome.out
    assert "\r" not in out
    assert "nan" not in out
    lines = out.splitlines()
    evaluations = [line for line in lines if line.startswith("evaluation at step ")]
    assert len(evaluations) == 5
    assert evaluations[2].startswith("evaluation at step 5 (end of first): math 0.0 % [0.0, ")
    assert "  scripted 75.0 % [30.1, 95.4]  in " in evaluations[2]
    steps = [line for line in lines if line.startswith("second 5/7  step 10/12  loss ")]
    assert len(steps) == 1
    assert steps[0].endswith("left  math 0.0 % scripted 25.0 %")


def test_a_run_ends_with_a_table_the_next_commands_and_its_conclusion(
    finished: FinishedRun,
) -> None:
    *table, empty, kept, following, browser, conclusion = finished.outcome.out.splitlines()[-9:]
    run_id = finished.lab.run.info.run_id[:8]
    assert empty == ""
    assert kept == f"Kept in run {run_id}: scores, answers, weights of every stage"
    assert following == f"Next: sft-lab compare {run_id}"
    assert browser == f"  or: sft-lab ui {run_id}"
    assert f"<div>{conclusion}</div>" in finished.lab.run.data.tags["mlflow.note.content"]
    assert [line.split() for line in table] == [
        ["after", "step", "math", "%", "scripted", "%"],
        ["(base)", "0", "0.0", "0.0"],
        ["first", "5", "0.0", "75.0"],
        ["second", "12", "0.0", "50.0"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [30, 80])
def test_a_terminal_gets_a_header_a_live_line_and_aligned_rows(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for name, value in {"COLUMNS": str(width), "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    # Every line is drawn, however short a time it holds.
    monkeypatch.setattr("sft_lab.callbacks.progress_screen._REFRESH_S", 0.0)
    out = lab.fit(stream=Terminal()).out
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", out)  # colours
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    lines = [part for line in shown.split("\n") for part in line.split("\r")]
    kept = [line for line in lines if line.startswith(("  ", "Kept", "Next")) or " · " in line]
    run_id = lab.run.info.run_id[:8]
    assert kept[0] == f"tiny k=1/4 seed 0 · 12 steps · run {run_id}"
    assert kept[1].split()[:3] == ["step", "math", "%"]
    rows = kept[2:7]
    assert [row.split()[0] for row in rows] == ["0", "4", "5", "8", "12"]
    assert len({row.index(" s") for row in rows}) == 1  # aligned
    assert ("[0-49]" in rows[0]) == (width == 80)
    assert rows[2].endswith("first") == (width == 80)
    assert f"Next: sft-lab compare {run_id}" in kept
    whole = "Forgetting in this run (1 seed): math never above chance."
    assert lines[-2].rstrip() == ("chance." if width == 30 else whole)  # no word is cut
    moving = [line for line in lines if "first 3/5" in line]
    assert any("25 %" in line and ("loss " in line) == (width == 80) for line in moving)
    assert "evaluating math 4/4" in shown
    assert width == 30 or max(map(len, lines)) <= width


@pytest.mark.slow
def test_the_shipped_dmt_trains_a_four_bit_base(lab: Lab) -> None:
    outcome = lab(
        "fit",
        "--config=configs/world/dmt.yaml",
        "--data.k=1/4",
        "--data.batch_size=12",
        "--data.micro_batch_size=4",
        "--corpus.val_rows=4",
    )
    assert outcome.code == 0, outcome.err
    assert lab.run.info.run_name == "dmt k=1/4 seed 0"
    assert set(lab.points("world_code/format_free")) == {0, 4, 7}
    assert lab.run.data.params["model.quantization"] == "nf4"


def test_a_budget_measures_fewer_items_between_boundaries(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MIN_ITEMS", 1)
    outcome = lab("fit", "--config=tiny.yaml", "--evaluation.budget=0.001%")
    assert outcome.code == 0, outcome.err
    counts = lab.counts("world_math/format_free")
    assert counts == {0: 4, 4: 1, 5: 4, 8: 1, 12: 4}
    first, second = (lab.json(f"answers/step_{s:06d}/world_math.json")["data"] for s in (4, 8))
    assert [row[0] for row in first] == [row[0] for row in second]
    [params] = [run.data.params for run in lab.runs]
    assert params["items_between.world_math"] == "1"
