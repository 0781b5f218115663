"""A run on two devices, which are CPU processes here, against the same run on one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray_cluster import free_port
from rounding import assert_equal_within_rounding, numbers
from tiny_lab import CONFIGS, Lab, MakeLab

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


MEASURED = {"speed/tokens_per_s", "time/eval_share"}

CHECKPOINTING = "--model.gradient_checkpointing=true"


@dataclass(frozen=True)
class Runs:
    """The same run on one device and on several, and on one device with other micro-batches."""

    one: Lab
    several: dict[int, Lab]
    regrouped: Lab


def train(make_lab: MakeLab, folder: Path, *flags: str, devices: tuple[int, ...]) -> Runs:
    def run(name: str, *more: str) -> Lab:
        (folder / name).mkdir()
        lab = make_lab(folder / name)
        write_config(lab)
        outcome = lab("fit", *FLAGS, *flags, *more)
        assert outcome.code == 0, outcome.err
        return lab

    several = {number: run(str(number), f"--trainer.devices={number}") for number in devices}
    return Runs(run("one"), several, run("regrouped", "--data.micro_batch_size=4"))


@pytest.fixture(scope="module")
def runs(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """QLoRA: the base in NF4 on each device; two micro-batches of each to a step."""
    return train(make_lab, tmp_path_factory.mktemp("runs"), devices=(2,))


@pytest.fixture
def two(runs: Runs) -> Lab:
    return runs.several[2]


def write_config(lab: Lab) -> None:
    lab.write("ranks.yaml", CONFIG.format(configs=CONFIGS))
    rows = (lab.world / "data/world_math.jsonl").read_text().splitlines()
    items = [json.dumps(json.loads(row) | {"solution": f"#### {n}"}) for n, row in enumerate(rows)]
    lab.write("items.jsonl", "\n".join(items))


def assert_equal_to_one_device(runs: Runs) -> None:
    one, regrouped = numbers(runs.one), numbers(runs.regrouped)
    for lab in runs.several.values():
        assert_equal_within_rounding(numbers(lab), one, regrouped)
        for name in ("samples/first.tsv", "samples/second.tsv", "windows/second.tsv"):
            assert lab.artifact(name).read_text() == runs.one.artifact(name).read_text()


def test_two_devices_give_losses_and_weights_of_one_within_rounding(runs: Runs) -> None:
    assert_equal_to_one_device(runs)


FULL = ("--model.quantization=fp32", "--model.lora=null")
PACKED = ("--data.packing=true", "--corpus.max_length=80", CHECKPOINTING)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        (("--data.stages.second.max_steps=45",), (2, 4)),
        (("--data.batch_size=8",), (4,)),
        (FULL, (2, 4)),
        (PACKED, (2, 4)),
    ],
    ids=["50 steps", "accumulated", "full", "packed"],
)
def test_other_runs_equal_those_of_one_device_too(
    make_lab: MakeLab, tmp_path: Path, flags: tuple[str, ...], devices: tuple[int, ...]
) -> None:
    assert_equal_to_one_device(train(make_lab, tmp_path, *flags, devices=devices))


def test_one_record_is_written_with_the_plan_and_the_points_of_one_device(
    runs: Runs, two: Lab
) -> None:
    assert two.run.info.status == "FINISHED"
    keys = runs.one.run.data.metrics.keys()
    assert two.run.data.metrics.keys() == keys
    assert {"form/math", "answer_loss/math", "selection/world_math_accuracy"} <= keys
    for key in keys - MEASURED:
        assert list(two.points(key)) == list(runs.one.points(key)), key  # none twice
    for key in ("progress/samples", "progress/tokens", "lr"):
        assert two.points(key) == runs.one.points(key)
    checkpoints = sorted(path.name for path in two.checkpoint.parent.rglob("*.ckpt"))
    assert checkpoints == ["first.ckpt", "last.ckpt", "second.ckpt"]


def test_items_are_answered_and_graded_once(runs: Runs, two: Lab) -> None:
    for step in runs.one.points("world_math/accuracy"):
        answers = f"answers/step_{step:06}/world_math.json"
        assert two.json(answers)["data"] == runs.one.json(answers)["data"]
    assert two.counts("world_math/accuracy") == runs.one.counts("world_math/accuracy")
    for key in ("world_math/accuracy", "form/math", "selection/world_math_accuracy"):
        assert two.points(key) == runs.one.points(key)


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
def test_a_killed_rank_ends_the_run_which_resumes_to_the_bit(two: Lab, stopped_lab: Lab) -> None:
    write_config(stopped_lab)
    flags = (*FLAGS, "--trainer.devices=2")
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 7, "
    killed = stopped_lab("fit", *flags, stop + "signal: 9, rank: 1}}")
    assert killed.code == 1
    assert "rank 1 was killed by SIGKILL" in killed.err
    assert stopped_lab.run.info.status == "FAILED"
    resumed = stopped_lab("fit", *flags, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert torch.equal(numbers(stopped_lab).weights, numbers(two).weights)
    for key in two.run.data.metrics.keys() - MEASURED:
        assert stopped_lab.points(key) == two.points(key), key


SERVER_AWAY = """
import os, signal
from lightning import Callback
from sft_lab.runs.logger import RunLogger

class Away(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.is_last_batch:  # as after STOP_WAIT_S; only the first rank has points to send
            first = trainer.is_global_zero
            RunLogger.flush = lambda logger, stopping=bool: not (first and stopping())
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.extended
def test_a_signal_while_the_server_is_away_ends_all_ranks(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_RANK_TIMEOUT_S", "60")
    write_config(lab)
    lab.write("server.py", SERVER_AWAY)
    away = "--trainer.callbacks+={class_path: server.Away}"
    outcome = lab("fit", *FLAGS, "--trainer.devices=2", away)
    assert outcome.code == 143, outcome.err
    assert lab.run.info.status == "KILLED"


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
    assert torch.equal(numbers(stopped_lab).weights, numbers(unbroken).weights)


@pytest.mark.extended
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_a_run_resumes_on_another_number_of_devices_which_is_recorded(
    runs: Runs, stopped_lab: Lab, before: int, after: int
) -> None:
    write_config(stopped_lab)
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 9, signal: 15}}"
    assert stopped_lab("fit", *FLAGS, f"--trainer.devices={before}", stop).code == 143
    resumed = stopped_lab("fit", *FLAGS, f"--trainer.devices={after}", "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    found = numbers(stopped_lab)
    assert_equal_within_rounding(found, numbers(runs.one), numbers(runs.regrouped))
    assert f"number of devices: {before}, now {after}" in str(stopped_lab.run.data.tags)


@pytest.mark.extended
@pytest.mark.parametrize("devices", [2, 4])
def test_a_fork_on_several_devices_equals_the_run_that_it_starts_from(
    runs: Runs, lab: Lab, devices: int
) -> None:
    shutil.copytree(runs.one.folder, lab.folder, dirs_exist_ok=True)
    parent = lab.run.info.run_id
    forked = lab("fit", *FLAGS, f"--trainer.devices={devices}", f"--from={parent}@first")
    assert forked.code == 0, forked.err
    fork = next(run.info.run_id for run in lab.runs if run.info.run_id != parent)
    found = numbers(lab, fork)
    assert_equal_within_rounding(found, numbers(runs.one), numbers(runs.regrouped))


@pytest.mark.extended
@pytest.mark.parametrize("command", ["validate", "test"])
def test_scores_of_a_checkpoint_on_two_devices_are_those_of_one(
    runs: Runs, lab: Lab, command: str
) -> None:
    write_config(lab)
    points = {}
    for devices in (1, 2):
        flags = (*FLAGS, f"--trainer.devices={devices}", f"--ckpt_path={runs.one.checkpoint}")
        outcome = lab(command, *flags)
        assert outcome.code == 0, outcome.err
        run = lab.runs[0]
        points[devices] = {key: lab.points(key, run.info.run_id) for key in run.data.metrics}
    assert len(lab.runs) == 2
    assert points[1].keys() == points[2].keys() >= {"val_loss/math", "val_loss/general"}
    for key in points[1].keys() - MEASURED:
        assert points[2][key] == pytest.approx(points[1][key], abs=1e-5), key
