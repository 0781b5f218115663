"""A run on two devices, which are CPU processes here, against the same run on one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray_cluster import free_port
from tiny_lab import CONFIGS, Lab, MakeLab
from torch import Tensor

# 21 rows of math: the last window of a pass has one for two devices.
CONFIG = """
seed_everything: 0
trainer: {configs}/trainer.yaml
model: {{base: world://base, quantization: nf4, lora: {{r: 4, lora_alpha: 8}}}}
corpus:
  sources: {{math: {{path: world://data/math.jsonl}}, general: {{path: world://data/general.jsonl}}}}
  val_rows: 3
evaluation:
  every_n_steps: 8
  split: 0.5
  benchmarks:
    world_math:
      class_path: sft_lab.evaluation.benchmarks.world.WorldMath
      init_args: {{path: items.jsonl, source: math, max_new_tokens: 4}}
checkpoint: {{every_n_steps: 4}}
data:
  batch_size: 4
  micro_batch_size: 1
  stages:
    first: {{mixture: {{math: 1}}, epochs: 1, lr: 1e-3}}
    second: {{mixture: {{general: 1, math: 1/4}}, max_steps: 6, lr: 5e-4}}
"""
FLAGS = (
    "--config=ranks.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
)


LOSSES = (
    *("train_loss/all", "train_loss/math", "train_loss/general"),
    *("val_loss/math", "val_loss/general", "answer_loss/math"),
)
MEASURED = {"speed/tokens_per_s", "time/eval_share"}

CHECKPOINTING = "--model.gradient_checkpointing=true"


@dataclass(frozen=True)
class Pair:
    """The same run on one device and on several, and on one device with other micro-batches."""

    one: Lab
    two: Lab
    regrouped: Lab


def train_pair(make_lab: MakeLab, folder: Path, *flags: str, num_devices: int = 2) -> Pair:
    def run(name: str, *more: str) -> Lab:
        (folder / name).mkdir()
        lab = make_lab(folder / name)
        write_config(lab)
        outcome = lab("fit", *FLAGS, *flags, *more)
        assert outcome.code == 0, outcome.err
        return lab

    regrouped = run("regrouped", "--data.micro_batch_size=4")
    return Pair(run("one"), run("several", f"--trainer.devices={num_devices}"), regrouped)


@pytest.fixture(scope="module")
def pair(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """QLoRA: the base in NF4 on each device; two micro-batches of each to a step."""
    return train_pair(make_lab, tmp_path_factory.mktemp("pair"))


def write_config(lab: Lab) -> None:
    lab.write("ranks.yaml", CONFIG.format(configs=CONFIGS))
    rows = (lab.world / "data/world_math.jsonl").read_text().splitlines()
    items = [json.dumps(json.loads(row) | {"solution": f"#### {n}"}) for n, row in enumerate(rows)]
    lab.write("items.jsonl", "\n".join(items))


def weights(lab: Lab) -> Tensor:
    checkpoint = torch.load(lab.checkpoint, map_location="cpu", weights_only=True)
    return torch.cat([w.flatten() for _, w in sorted(checkpoint["state_dict"].items())])


def largest_difference(these: dict[int, float], those: dict[int, float]) -> float:
    assert list(these) == list(those)
    return max(abs(these[step] - those[step]) for step in these)


def assert_equal_within_rounding(pair: Pair) -> None:
    """Compare losses and weights with those of one device.

    The bound is measured: what other micro-batches on one device change by rounding alone. Both
    regroup the same sum of gradients. Ten times that leaves room for another grouping.
    """
    for key in LOSSES:
        points = pair.one.points(key)
        bound = 10 * largest_difference(points, pair.regrouped.points(key)) + 1e-6
        assert bound < 1e-3, key
        assert largest_difference(points, pair.two.points(key)) <= bound, key
    one, two, regrouped = (weights(lab) for lab in (pair.one, pair.two, pair.regrouped))
    bound = 10 * (one - regrouped).abs().max().item()
    assert 0 < bound < 1e-3
    assert (one - two).abs().max().item() <= bound


def test_two_devices_give_losses_and_weights_of_one_within_rounding(pair: Pair) -> None:
    assert_equal_within_rounding(pair)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("flags", "num_devices"),
    [
        (("--model.quantization=fp32",), 4),
        (("--model.quantization=fp32", "--model.lora=null"), 2),
        (("--data.packing=true", "--corpus.max_length=80", CHECKPOINTING), 2),
    ],
    ids=["four devices", "full", "packed"],
)
def test_other_runs_equal_those_of_one_device_too(
    make_lab: MakeLab, tmp_path: Path, flags: tuple[str, ...], num_devices: int
) -> None:
    pair = train_pair(make_lab, tmp_path, *flags, num_devices=num_devices)
    assert_equal_within_rounding(pair)
    for name in ("samples/first.tsv", "samples/second.tsv", "windows/second.tsv"):
        assert pair.two.artifact(name).read_text() == pair.one.artifact(name).read_text()


def test_one_record_is_written_with_the_plan_and_the_points_of_one_device(pair: Pair) -> None:
    assert pair.two.run.info.status == "FINISHED"
    for name in ("samples/first.tsv", "samples/second.tsv", "windows/second.tsv"):
        assert pair.two.artifact(name).read_text() == pair.one.artifact(name).read_text()
    keys = pair.one.run.data.metrics.keys()
    assert pair.two.run.data.metrics.keys() == keys
    assert {"form/math", "answer_loss/math", "selection/world_math_accuracy"} <= keys
    for key in keys - MEASURED:
        assert list(pair.two.points(key)) == list(pair.one.points(key)), key  # none twice
    for key in ("progress/samples", "progress/tokens", "lr"):
        assert pair.two.points(key) == pair.one.points(key)
    checkpoints = sorted(path.name for path in pair.two.checkpoint.parent.rglob("*.ckpt"))
    assert checkpoints == ["first.ckpt", "last.ckpt", "second.ckpt"]


def test_items_are_answered_and_graded_once(pair: Pair) -> None:
    for step in pair.one.points("world_math/accuracy"):
        answers = f"answers/step_{step:06}/world_math.json"
        assert pair.two.json(answers)["data"] == pair.one.json(answers)["data"]
    assert pair.two.counts("world_math/accuracy") == pair.one.counts("world_math/accuracy")
    for key in ("world_math/accuracy", "form/math", "selection/world_math_accuracy"):
        assert pair.two.points(key) == pair.one.points(key)


@pytest.mark.extended
def test_two_machines_without_a_shared_folder_are_refused_by_one_error(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    """Start both processes as ``torchrun`` does on two machines, in folders of their own."""
    processes, port = [], free_port()
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        lab = make_lab(tmp_path / str(rank))
        write_config(lab)
        environment = {
            **os.environ,
            "SFT_LAB_WORLD": str(lab.world),
            "SFT_LAB_CACHE": str(lab.folder / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-m", "sft_lab", "fit", *FLAGS, "--trainer.num_nodes=2"]
        processes.append(
            subprocess.Popen(
                command, cwd=lab.folder, env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert errors[0].count("error: ") == 1
    assert (
        "checkpoint.dirpath: mlruns/checkpoints on rank 1 is not the folder of rank 0" in errors[0]
    )
    assert "error: " not in errors[1]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_resumes_to_the_bit(pair: Pair, stopped_lab: Lab) -> None:
    write_config(stopped_lab)
    flags = (*FLAGS, "--trainer.devices=2")
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 7, "
    killed = stopped_lab("fit", *flags, stop + "signal: 9, rank: 1}}")
    assert killed.code == 1
    assert "rank 1 was killed by SIGKILL" in killed.err
    assert stopped_lab.run.info.status == "FAILED"
    resumed = stopped_lab("fit", *flags, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert torch.equal(weights(stopped_lab), weights(pair.two))
    for key in pair.two.run.data.metrics.keys() - MEASURED:
        assert stopped_lab.points(key) == pair.two.points(key), key


@pytest.mark.extended
def test_dropout_resumes_to_the_bit(stopped_lab: Lab, make_lab: MakeLab, tmp_path: Path) -> None:
    (tmp_path / "unbroken").mkdir()
    unbroken = make_lab(tmp_path / "unbroken")
    flags = (*FLAGS, "--trainer.devices=2", "--model.lora.lora_dropout=0.1")
    for lab in (unbroken, stopped_lab):
        write_config(lab)
    assert unbroken("fit", *flags).code == 0
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 8}}"
    stopped = stopped_lab("fit", *flags, stop)
    assert stopped.code == 1
    assert "stopped by the test" in stopped.err
    resumed = stopped_lab("fit", *flags, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert torch.equal(weights(stopped_lab), weights(unbroken))


@pytest.mark.extended
def test_a_run_resumes_on_another_number_of_devices_which_is_recorded(
    pair: Pair, stopped_lab: Lab
) -> None:
    write_config(stopped_lab)
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 8, signal: 15}}"
    assert stopped_lab("fit", *FLAGS, stop).code == 143
    resumed = stopped_lab("fit", *FLAGS, "--trainer.devices=2", "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert (weights(stopped_lab) - weights(pair.one)).abs().max().item() < 1e-3
    assert list(stopped_lab.points("train_loss/all")) == list(pair.one.points("train_loss/all"))
    assert "number of devices: 1, now 2" in str(stopped_lab.run.data.tags)


@pytest.mark.extended
def test_a_fork_on_two_devices_equals_the_run_that_it_starts_from(lab: Lab) -> None:
    write_config(lab)
    assert lab("fit", *FLAGS).code == 0
    parent = lab.run.info.run_id
    folder = lab.checkpoint.parent.parent
    forked = lab("fit", *FLAGS, "--trainer.devices=2", f"--from={parent}@first")
    assert forked.code == 0, forked.err
    fork = next(run.info.run_id for run in lab.runs if run.info.run_id != parent)
    for key in LOSSES:
        assert largest_difference(lab.points(key, parent), lab.points(key, fork)) < 1e-3, key
    ends = [
        torch.load(folder / run / "last.ckpt", weights_only=True)["state_dict"]
        for run in (parent, fork)
    ]
    assert ends[0].keys() == ends[1].keys()
    for name, weight in ends[0].items():
        assert (weight - ends[1][name]).abs().max().item() < 1e-3, name


@pytest.mark.extended
@pytest.mark.parametrize("command", ["validate", "test"])
def test_scores_of_a_checkpoint_on_two_devices_are_those_of_one(
    pair: Pair, lab: Lab, command: str
) -> None:
    write_config(lab)
    points = {}
    for devices in (1, 2):
        flags = (*FLAGS, f"--trainer.devices={devices}", f"--ckpt_path={pair.one.checkpoint}")
        outcome = lab(command, *flags)
        assert outcome.code == 0, outcome.err
        run = lab.runs[0]
        points[devices] = {key: lab.points(key, run.info.run_id) for key in run.data.metrics}
    assert len(lab.runs) == 2
    assert points[1].keys() == points[2].keys() >= {"val_loss/math", "val_loss/general"}
    for key in points[1].keys() - MEASURED:
        assert points[2][key] == pytest.approx(points[1][key], abs=1e-5), key
