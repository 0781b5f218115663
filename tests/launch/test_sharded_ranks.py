"""A model sharded over two devices (FSDP2), which are CPU processes here, against one device."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import assert_equal_within_rounding, numbers
from safetensors.torch import load_file
from tiny_lab import CONFIGS, Lab, MakeLab
from transformers import MambaConfig

from sft_lab.errors import RequestError
from sft_lab.model.sharding import check_shardable

# Windows of four micro-batches, of one at the end of a pass; answers of several lengths, of which
# the two devices have different numbers of passes.
CONFIG = """
seed_everything: 0
trainer: {configs}/trainer.yaml
model: {{base: world://base, quantization: fp32, lora: {{r: 4, lora_alpha: 8}}}}
corpus:
  sources: {{math: {{path: world://data/math.jsonl}}, general: {{path: world://data/general.jsonl}}}}
  val_rows: 3
evaluation:
  every_n_steps: 4
  split: 0.5
  batch_size: 2
  benchmarks:
    world_math:
      class_path: sft_lab.evaluation.benchmarks.world.WorldMath
      init_args: {{path: items.jsonl, source: math, max_new_tokens: 6}}
checkpoint: {{every_n_steps: 2}}
data:
  batch_size: 4
  micro_batch_size: 1
  stages:
    first: {{mixture: {{math: 1}}, epochs: 1, lr: 1e-3}}
    second: {{mixture: {{general: 1, math: 1/4}}, max_steps: 2, lr: 5e-4, optimizer: keep}}
"""
FLAGS = (
    "--config=ranks.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=1",
)
TWO = ("--trainer.devices=2", "--trainer.strategy=fsdp")
FULL = "--model.lora=null"
LOSSES = ("train_loss/all", "val_loss/math", "val_loss/general", "answer_loss/math")


@dataclass(frozen=True)
class Runs:
    """The same run on one device, with other micro-batches there, and sharded over two."""

    one: Lab
    regrouped: Lab
    two: Lab


def write_config(lab: Lab) -> None:
    lab.write("ranks.yaml", CONFIG.format(configs=CONFIGS))
    rows = (lab.world / "data/world_math.jsonl").read_text().splitlines()[:5]
    items = [json.loads(row) | {"solution": f"#### {n}" * (n + 1)} for n, row in enumerate(rows)]
    lab.write("items.jsonl", "\n".join(map(json.dumps, items)))


def train(make_lab: MakeLab, folder: Path, *flags: str) -> Lab:
    folder.mkdir()
    lab = make_lab(folder)
    write_config(lab)
    outcome = lab("fit", *FLAGS, *flags)
    assert outcome.code == 0, outcome.err
    return lab


def train_all(make_lab: MakeLab, folder: Path, *flags: str, two: tuple[str, ...] = TWO) -> Runs:
    return Runs(
        train(make_lab, folder / "one", *flags),
        train(make_lab, folder / "regrouped", *flags, "--data.micro_batch_size=4"),
        train(make_lab, folder / "two", *flags, *two),
    )


@pytest.fixture(scope="module")
def full(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return train_all(make_lab, tmp_path_factory.mktemp("full"), FULL)


def checkpoint(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(lab.checkpoint, weights_only=True)
    return found


def assert_equal(runs: Runs) -> None:
    one, regrouped, two = (numbers(lab) for lab in (runs.one, runs.regrouped, runs.two))
    assert one.losses.keys() >= set(LOSSES)
    assert_equal_within_rounding(two, one, regrouped)


def assert_same_answers(runs: Runs) -> None:
    for step in runs.one.points("world_math/accuracy"):
        answers = f"answers/step_{step:06}/world_math.json"
        assert runs.two.json(answers)["data"] == runs.one.json(answers)["data"]


@pytest.mark.slow
def test_full_fine_tuning_gives_losses_weights_and_answers_of_one_device(full: Runs) -> None:
    assert_equal(full)
    assert_same_answers(full)


@pytest.mark.slow
def test_a_checkpoint_has_the_format_of_one_device(full: Runs) -> None:
    one, two = (checkpoint(lab) for lab in (full.one, full.two))
    assert two.keys() == one.keys()
    assert list(two["state_dict"]) == list(one["state_dict"])
    (one,), (two,) = one["optimizer_states"], two["optimizer_states"]
    assert two["param_groups"] == one["param_groups"]
    torch.testing.assert_close(two["state"], one["state"], rtol=0, atol=1e-4)
    files = [
        sorted(path.name for path in lab.artifact("stages/second").iterdir())
        for lab in (full.one, full.two)
    ]
    assert files[0] == files[1]
    assert full.two.json("stages/second/config.json")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
def test_weights_and_moments_are_taken_over_to_the_bit(full: Runs, lab: Lab) -> None:
    shutil.copytree(full.two.folder, lab.folder, dirs_exist_ok=True)
    parent = lab.run.info.run_id
    forked = lab("fit", *FLAGS, FULL, *TWO, f"--from={parent}@first")
    assert forked.code == 0, forked.err
    fork = next(run.info.run_id for run in lab.runs if run.info.run_id != parent)
    expected, found = numbers(lab, parent), numbers(lab, fork)
    assert found.losses == expected.losses
    assert torch.equal(found.weights, expected.weights)


@pytest.mark.extended
@pytest.mark.parametrize(("signal", "code"), [(15, 143), (9, 1)])
def test_a_stopped_run_resumes_to_the_bit(
    full: Runs, stopped_lab: Lab, signal: int, code: int
) -> None:
    write_config(stopped_lab)
    where = f"init_args: {{step: 6, signal: {signal}, rank: 1}}"
    stop = f"--trainer.callbacks+={{class_path: stopper.Stop, {where}}}"
    assert stopped_lab("fit", *FLAGS, FULL, *TWO, stop).code == code
    resumed = stopped_lab("fit", *FLAGS, FULL, *TWO, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    expected, found = numbers(full.two), numbers(stopped_lab)
    assert found.losses == expected.losses
    assert torch.equal(found.weights, expected.weights)


@pytest.mark.slow
def test_lora_gives_losses_weights_and_answers_of_one_device(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    runs = train_all(make_lab, tmp_path)
    assert_equal(runs)
    assert_same_answers(runs)
    path = "stages/second/adapter_model.safetensors"
    one, two = (load_file(lab.artifact(path)) for lab in (runs.one, runs.two))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-3)


@pytest.mark.extended
def test_packed_rows_with_checkpointing_on_four_devices_equal_one(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    flags = ("--data.packing=true", "--corpus.max_length=80", "--model.gradient_checkpointing=true")
    four = ("--trainer.devices=4", "--trainer.strategy=fsdp")
    assert_equal(train_all(make_lab, tmp_path, *flags, two=four))


@pytest.mark.extended
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_base_in_bfloat16_gives_the_losses_of_one_device(
    make_lab: MakeLab, tmp_path: Path, precision: str
) -> None:
    flags = ("--model.quantization=bf16", f"--trainer.precision={precision}")
    one = train(make_lab, tmp_path / "one", *flags)
    two = train(make_lab, tmp_path / "two", *flags, *TWO)
    for key in LOSSES:  # of 5 nats, and bfloat16 has two to three digits
        assert two.points(key) == pytest.approx(one.points(key), abs=1e-3), key
    found, expected = (checkpoint(lab)["state_dict"] for lab in (two, one))
    torch.testing.assert_close(found, expected, rtol=0, atol=8e-3)  # eight steps of at most 1e-3


@pytest.mark.extended
def test_a_sharded_run_resumes_on_one_device_and_is_scored_on_two(
    full: Runs, stopped_lab: Lab
) -> None:
    write_config(stopped_lab)
    stop = "--trainer.callbacks+={class_path: stopper.Stop, init_args: {step: 6, signal: 15}}"
    assert stopped_lab("fit", *FLAGS, FULL, *TWO, stop).code == 143
    resumed = stopped_lab("fit", *FLAGS, FULL, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert "number of devices: 2 (fsdp), now 1" in str(stopped_lab.run.data.tags)
    one, found = (checkpoint(lab)["state_dict"] for lab in (full.one, stopped_lab))
    torch.testing.assert_close(found, one, rtol=0, atol=1e-3)
    path = f"--ckpt_path={stopped_lab.checkpoint}"
    assert stopped_lab("test", *FLAGS, FULL, path).code == 0
    assert stopped_lab("test", *FLAGS, FULL, *TWO, path).code == 0
    sharded, alone, _ = stopped_lab.runs
    assert sharded.data.metrics.keys() == alone.data.metrics.keys()
    for key in ("val_loss/math", "answer_loss/math", "world_math/accuracy"):
        values = (run.data.metrics[key] for run in (sharded, alone))
        assert next(values) == pytest.approx(next(values), abs=1e-5), key


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--trainer.devices=1"], "shards a model over several devices, and the run has one"),
        (["--model.quantization=nf4"], "model.quantization nf4 does not go with trainer.strategy"),
        (["--model.quantization=int8"], "a sharded layer of bitsandbytes loses the scales"),
        (
            ["--model.lora=null", "--model.peft={class_path: peft.LoraConfig}"],
            "model.peft peft.LoraConfig does not go with trainer.strategy fsdp: only LoRA has",
        ),
        (["--trainer.precision=16-mixed"], "trainer.precision 16-mixed does not go with"),
        (["--model.torch_compile=true"], "model.torch_compile true does not go with"),
        (["--model.optimizer=paged_adamw_8bit"], "its states are not sharded; set it to adamw"),
        (["--evaluation.weights=merged"], "a merged copy would be whole on each device"),
        (["--evaluation.engine=vllm"], "evaluation.engine vllm does not go with"),
        (
            ["--data.stages.second.hand_over={class_path: sft_lab.training.hand_over.NewAdapter}"],
            "data.stages.second.hand_over sft_lab.training.hand_over.NewAdapter does not go with",
        ),
        (
            ["--data.stages.second.loss=[{class_path: terms.NearBase}]"],
            "terms.NearBase does not go with trainer.strategy fsdp: it runs the base with its",
        ),
    ],
)
def test_what_is_not_exact_in_a_sharded_model_is_refused(
    lab: Lab, flags: list[str], error: str
) -> None:
    write_config(lab)
    lab.write(
        "terms.py",
        "from sft_lab.training.loss import LossTerm\n\n\n"
        "class NearBase(LossTerm):\n    needs_base_logits = True\n",
    )
    outcome = lab("fit", *FLAGS, *TWO, *flags)
    assert outcome.code == 2
    assert error in outcome.err
    assert not lab.runs


def test_a_recurrent_base_is_refused(tmp_path: Path) -> None:
    MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="fsdp: MambaForCausalLM is not sharded, its "):
        check_shardable(str(tmp_path))
    check_shardable("world://base")
