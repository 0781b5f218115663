"""A guarded stage from the command line, with preset scores."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from rounding import assert_equal_within_rounding, numbers
from tiny_lab import Lab, MakeLab

from sft_lab.evaluation import budget
from sft_lab.runs.evaluations import read_points
from sft_lab.runs.results import read_answers

pytestmark = pytest.mark.slow

# 20 rows of math in 10 steps, then 20 of general twice over: steps 10 to 30 while none is replayed.
GUARDED = """
model: {lora: {lora_dropout: 0.1}}
evaluation:
  every_n_steps: 4
  split: 0.5
  benchmarks:
    preset:
      class_path: preset.Preset
      init_args: {path: items.jsonl, source: math, max_new_tokens: 2}
trainer: {log_every_n_steps: 1}
checkpoint: {every_n_steps: 3}
data:
  k: 0
  batch_size: 2
  micro_batch_size: 1
  stages:
    second: {epochs: 2}
  guard:
    stage: second
    min_retention: {preset/accuracy: 0.5}
    shares: [0, 1/20, 1/2, 1]
    room: 0.2
"""
PRESET = '''
import json

from lightning import Callback

from sft_lab.evaluation.benchmark import Benchmark, Verdict
from sft_lab.metrics.score import Score

# What is measured at a step, of every item alike; 1 where nothing is said. The best is 1, so the
# limit is 0.5, and there is room from 0.7 on.
SCORES = {12: 0.3, 16: 0.45, 20: 0.6, 24: 0.9, 28: 0.45, 32: 1.0}


class Preset(Benchmark):
    """Gets the score that is preset for the step."""

    score_names = ("accuracy",)
    preset = SCORES
    step = 0

    def grade(self, items, completions):
        return [Verdict({"accuracy": self.preset.get(Preset.step, 1.0)}, "") for _ in items]

    def scores(self, items, verdicts):
        value = self.preset.get(Preset.step, 1.0)
        return {"accuracy": Score(value, value - 0.1, min(1.0, value + 0.1), len(items))}


class Steady(Preset):
    """Is above its limit and has no room, after the first stage."""

    preset = dict.fromkeys(range(11, 99), 0.6)


class Corpuswide(Preset):
    """Has a score that is not a mean over items."""

    def mark_of(self, score_name):
        return None


class Watch(Callback):
    """Tells the benchmark the step; writes down every batch; ends the run at a moment."""

    def __init__(self, hook: str = "", step: int = -1) -> None:
        self.hook, self.step = hook, step

    def _stop(self, hook, trainer):
        if hook == self.hook and trainer.global_step == self.step:
            raise RuntimeError("stopped by the test")

    def on_evaluation_start(self, trainer, pl_module):
        Preset.step = trainer.global_step
        self._stop("evaluation", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 2 == 1:
            self._stop("window", trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        place = [trainer.current_epoch, batch_idx]
        with open("batches.jsonl", "a") as file:
            row = [place, batch["input_ids"].tolist(), outputs["loss"].item()]
            file.write(json.dumps(row) + "\\n")

    def on_train_epoch_end(self, trainer, pl_module):
        self._stop("pass end", trainer)
'''
WATCH = "--trainer.callbacks+=preset.Watch"
EXACT = (
    "train_loss/all",
    "train_loss/math",
    "train_loss/general",
    "val_loss/general",
    "lr",
    "progress/samples",
    "progress/tokens",
    "guard_share/math",
    "guard_limit/preset_accuracy",
    "change_from_base/math",
)


def guarded(lab: Lab, config: str = GUARDED) -> Lab:
    lab.write("guarded.yaml", config)
    lab.write("preset.py", PRESET)
    rows = [{"id": str(n), "messages": [{"role": "user", "content": f"{n}?"}]} for n in range(8)]
    write_jsonl(lab.folder / "items.jsonl", rows)
    return lab


def fit(lab: Lab, *arguments: str) -> Any:
    return lab.fit("--config=guarded.yaml", WATCH, *arguments)


def batches(lab: Lab) -> dict[str, Any]:
    """Every micro-batch by its place; one that was trained twice was the same both times."""
    found: dict[str, Any] = {}
    for line in (lab.folder / "batches.jsonl").read_text().splitlines():
        place, *content = json.loads(line)
        assert found.setdefault(str(place), content) == content, place
    return found


def decisions(lab: Lab) -> list[tuple[int, str, str]]:
    found = lab.json("guard.json")["decisions"]
    return [(d["step"], d["shares"]["math"]["from"], d["shares"]["math"]["to"]) for d in found]


DEVICES = ("--trainer.devices=2", "--trainer.devices=4")
DECIDED = [
    (12, "0", "1/20"),  # it falls: 0 has failed
    (16, "1/20", "1/2"),  # on its way up
    (20, "1/2", "1/2"),  # above, without room
    (24, "1/2", "1/20"),  # room
    (28, "1/20", "1/2"),  # it falls again
    (32, "1/2", "1/2"),  # room, but 1/20 has failed
]


@pytest.fixture(scope="module")
def unbroken(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, str]:
    lab = guarded(make_lab(tmp_path_factory.mktemp("guarded")))
    outcome = fit(lab)
    assert outcome.code == 0, outcome.err
    return lab, outcome.out


@pytest.mark.extended
def test_a_guard_on_several_devices_decides_and_trains_as_on_one(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    # Steps as in GUARDED, in windows that four devices can share; without dropout, whose masks
    # differ.
    flags = (
        "--data.batch_size=4",
        "--data.stages.first.epochs=2",
        "--data.stages.second.epochs=4",
        "--model.lora.lora_dropout=0",
    )
    labs = []
    for more in ("--data.micro_batch_size=1", "--data.micro_batch_size=4", *DEVICES):
        (tmp_path / str(len(labs))).mkdir()
        labs.append(guarded(make_lab(tmp_path / str(len(labs)))))
        outcome = fit(labs[-1], *flags, more)
        assert outcome.code == 0, outcome.err
    one, regrouped, *several = labs
    for lab in several:
        assert decisions(lab) == decisions(one) == DECIDED
        for name in ("samples/second.tsv", "windows/second.tsv"):
            assert lab.artifact(name).read_text() == one.artifact(name).read_text()
        for key in ("progress/samples", "progress/tokens", "lr", "guard_share/math"):
            assert lab.points(key) == one.points(key)
        assert_equal_within_rounding(numbers(lab), numbers(one), numbers(regrouped))


def test_replay_follows_what_is_measured(unbroken: tuple[Lab, str]) -> None:
    lab, out = unbroken
    assert decisions(lab) == DECIDED
    assert lab.points("guard_share/math") == {
        10: 0, 12: 1 / 20, 16: 1 / 2, 20: 1 / 2, 24: 1 / 20, 28: 1 / 2, 32: 1 / 2
    }  # fmt: skip
    assert lab.points("guard_limit/preset_accuracy") == dict.fromkeys(range(12, 33, 4), 0.5)
    assert (
        "guard at step 12: math from 0 to 1/20: "
        "preset/accuracy below 50.0 by 20.0 [-20.0, -20.0]" in out
    )
    assert "guard at step 24: math from 1/2 to 1/20: preset/accuracy well above 50.0" in out
    assert "guard at step 32" not in out
    first = lab.json("guard.json")["decisions"][0]["abilities"]["preset/accuracy"]
    assert (first["best"], first["limit"], first["standing"]) == (1.0, 0.5, "below")
    assert first["margin"]["high"] == pytest.approx(-0.2)


def test_the_record_is_what_was_trained(unbroken: tuple[Lab, str]) -> None:
    lab, _ = unbroken
    plan = lab.json("record.json")["stages"]["second"]
    windows = [
        line.split("\t") for line in lab.artifact("windows/second.tsv").read_text().split("\n")
    ]
    replayed = {int(row[0]): int(row[2]) for row in windows[1:] if row[1:2] == ["math"]}
    # Nothing before the cut after the first decision, the stage's third step.
    assert min(replayed) > 3
    trained = plan["trained"]
    assert trained["general"]["samples"] == 40  # each row once a pass
    assert trained["math"]["samples"] == sum(replayed.values())
    assert set(lab.points("train_loss/math")) == {
        *range(1, 11),
        *(10 + step for step in replayed),
    }
    last = max(lab.points("train_loss/all"))
    assert last == 10 + plan["steps"] == max(lab.points("preset/accuracy"))
    assert lab.points("progress/samples")[last] == 20 + 40 + trained["math"]["samples"]
    times = Counter(
        row.split("\t")[0]
        for row in lab.artifact("samples/second.tsv").read_text().splitlines()[1:]
        if row.endswith("\t2")
    )
    assert times["general"] == 20
    rates = list(lab.points("lr").values())[10:]
    assert rates[-1] < 0.1 * max(rates)  # the cosine reaches its end
    top = rates.index(max(rates))
    assert all(high >= low for high, low in zip(rates[top:], rates[top + 1 :], strict=False))


# Before a decision, at it, after it, where it ends a pass, where a share was lowered.
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        pytest.param("window", 11, marks=pytest.mark.extended),
        ("evaluation", 12),
        pytest.param("window", 12, marks=pytest.mark.extended),
        ("pass end", 13),
        pytest.param("window", 18, marks=pytest.mark.extended),
        ("window", 30),
    ],
)
def test_a_stopped_run_decides_as_an_unbroken_one(
    unbroken: tuple[Lab, str], lab: Lab, hook: str, step: int
) -> None:
    expected, _ = unbroken
    guarded(lab)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        fit(lab, f"--trainer.callbacks.hook={hook}", f"--trainer.callbacks.step={step}")
    outcome = fit(lab, "--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert batches(lab) == batches(expected)
    for key in EXACT:
        assert lab.points(key) == expected.points(key), key
    for path in ("guard.json", "record.json"):
        assert lab.json(path) == expected.json(path)
    for path in ("windows/second.tsv", "samples/second.tsv"):
        assert lab.artifact(path).read_text() == expected.artifact(path).read_text()


def test_within_a_budget_the_guard_reads_all_its_selection_items(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MIN_ITEMS", 1)
    outcome = fit(guarded(lab), "--evaluation.budget=0.001%")
    assert outcome.code == 0, outcome.err
    points = read_points(lab.store, lab.run.info.run_id)
    key, last = "preset/accuracy", points[-1].step
    counts = {p.step: (p.scores[key].n, p.selection[key].n if p.selection else 0) for p in points}
    between = {step: (1, 4 if step > 10 else 0) for step in counts if step not in (0, 10, last)}
    assert counts == {0: (4, 4), 10: (4, 4), last: (4, 4)} | between
    assert {p.step for p in points if p.partial} == set(between)
    assert decisions(lab) == DECIDED
    # What is reported has no change where only a part of its items was measured.
    assert set(lab.points("change_from_base/math")) == {10, last}
    assert set(lab.points("selection/preset_accuracy")) == {0, *range(10, last + 1)} & set(counts)


def test_what_decides_is_never_what_is_reported(unbroken: tuple[Lab, str]) -> None:
    lab, _ = unbroken
    last = max(lab.points("preset/accuracy"))
    table = lab.json(f"answers/step_{last:06d}/preset.json")
    part = table["columns"].index("split")
    sides = {row[0]: row[part] for row in table["data"]}
    assert Counter(sides.values()) == {"selection": 4, "report": 4}
    run_id = lab.run.info.run_id
    assert {a.part for a in read_answers(lab.store, run_id, "preset", last)} == {"report"}
    found = lab.json(f"evaluations/step_{last:06d}.json")
    assert found["scores"]["preset/accuracy"]["split"] == found["split"] == "report"
    assert found["selection"]["preset/accuracy"]["split"] == "selection"
    split = lab.json("record.json")["benchmarks"]["preset"]["split"]
    assert (split["fraction"], split["selection"], split["report"]) == (0.5, 4, 4)


def test_a_checkpoint_of_a_guarded_run_is_scored(unbroken: tuple[Lab, str], lab: Lab) -> None:
    guarded(lab)
    path = f"--ckpt_path={unbroken[0].checkpoint}"
    last = max(unbroken[0].points("val_loss/math"))
    for command, side, other in (
        ("validate", "selection", "report"),
        ("test", "report", "selection"),
    ):
        outcome = lab(command, "--config=tiny.yaml", "--config=guarded.yaml", path)
        assert outcome.code == 0, outcome.err
        assert "preset 100.0" in outcome.out
        metrics = lab.runs[0].data.metrics
        assert metrics["val_loss/math"] == unbroken[0].points("val_loss/math")[last]
        assert ("selection/preset_accuracy" in metrics) is (side == "selection")
        assert ("ability/math" in metrics) is (side == "report")
        answers = lab.store.artifact_text(
            lab.runs[0].info.run_id, f"answers/step_{last:06d}/preset.json"
        )
        assert f'"{side}"' in answers
        assert f'"{other}"' not in answers


def test_a_run_starts_after_a_guarded_stage(unbroken: tuple[Lab, str], lab: Lab) -> None:
    expected, _ = unbroken
    guarded(lab)
    shutil.copytree(expected.folder, lab.folder, dirs_exist_ok=True)
    third = "--data.stages.third={mixture: {math: 1/5}, max_steps: 2, lr: 1e-3}"
    outcome = fit(lab, f"--from={expected.run.info.run_id}@second", third)
    assert outcome.code == 0, outcome.err
    run_id = lab.runs[0].info.run_id
    for path, part in (("guard.json", "decisions"), ("record.json", "stages")):
        content = json.loads(lab.store.artifact_text(run_id, path))[part]
        if part == "stages":
            del content["third"]
        assert content == expected.json(path)[part]
    end = max(expected.points("lr"))
    rates = lab.points("lr", run_id)
    assert {step: rate for step, rate in rates.items() if step <= end} == expected.points("lr")
    assert max(rates) == end + 2


def test_a_guard_that_never_acts_changes_nothing(make_lab: MakeLab, tmp_path: Path) -> None:
    config = GUARDED.replace("preset.Preset", "preset.Steady")
    configs = {"with": config, "without": config[: config.index("  guard:")]}
    for name in configs:
        (tmp_path / name).mkdir()
    labs = [guarded(make_lab(tmp_path / name), configs[name]) for name in configs]
    with_guard, without = labs
    for lab in labs:
        outcome = fit(lab, "--data.k=1/20")
        assert outcome.code == 0, outcome.err
    assert {(old, new) for _, old, new in decisions(with_guard)} == {("1/20", "1/20")}
    # Passes are cut where a guard may act, so places differ; what is trained does not.
    assert list(batches(with_guard).values()) == list(batches(without).values())
    for key in EXACT:
        if not key.startswith("guard_"):
            assert with_guard.points(key) == without.points(key), key
    plans = [lab.json("record.json")["stages"] for lab in labs]
    assert plans[0] == plans[1]


def test_what_only_the_data_show_is_refused_before_a_run(lab: Lab) -> None:
    refused = fit(guarded(lab), "--evaluation.every_n_steps=29")
    assert refused.code == 2
    assert (
        "no evaluation is far enough inside stage 'second' to decide anything: it trains "
        "from step 10 to 30, and evaluation.every_n_steps is 29; set it lower." in refused.err
    )
    refused = fit(lab, "--data.guard.shares=[0, 1/40]")
    assert refused.code == 2
    assert "data.guard.shares: 1/40 of 'math' selects no row" in refused.err
    refused = fit(lab, "--data.guard.rom=0.1")
    assert refused.code == 2
    assert "unknown key 'data.guard.rom'; did you mean 'data.guard.room'?" in refused.err
    assert lab.runs == []


def test_a_score_without_marks_is_refused_before_a_run(lab: Lab) -> None:
    refused = fit(guarded(lab, GUARDED.replace("preset.Preset", "preset.Corpuswide")))
    assert refused.code == 2
    assert (
        "data.guard.min_retention.preset/accuracy: the guard compares item by item" in refused.err
    )
    assert lab.runs == []


def test_inspect_says_what_is_steered(lab: Lab) -> None:
    guarded(lab)
    shown = lab("inspect", "--config=tiny.yaml", "--config=guarded.yaml", "-n0")
    assert shown.code == 0, shown.err
    assert "second: a guard chooses the replay share of math: 0, 1/20, 1/2, 1" in shown.out
