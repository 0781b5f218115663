"""Loss and gradient of the module in a real Trainer, and what its checkpoints hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import chat, write_jsonl
from lightning import Callback, Trainer
from runs import FinishedRun, Lab
from torch.nn import functional

from callbacks.stage_scheduler import StageScheduler
from sft_lab.data.corpus import Corpus
from sft_lab.data.module import StagedDataModule
from sft_lab.data.sources import Source
from sft_lab.data.stage import Stage
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.module import SFTModule

Gradients = dict[str, torch.Tensor]


class Capture(Callback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in pl_module.model.named_parameters()
        }


@pytest.fixture
def corpus(tiny_base: Path, tmp_path: Path) -> Corpus:
    """Eight rows with 2, 3, 5, 9, ... 129 target tokens."""
    rows = [chat("?" * (9 - n), "x" * 2**n) for n in range(8)]
    return Corpus({"rows": Source(str(write_jsonl(tmp_path / "rows.jsonl", rows)))}, str(tiny_base))


@pytest.fixture
def window_gradients(tiny_base: Path, corpus: Corpus) -> Callable[[int], Gradients]:
    """Trains the base in full on one window of 8 rows, cut into micro-batches."""

    def gradients(micro_batch_size: int) -> Gradients:
        suite, capture = EvaluationSuite({}), Capture()
        data = StagedDataModule(
            corpus,
            suite,
            {"only": Stage({"rows": 1}, lr=1e-3, epochs=1)},
            batch_size=8,
            micro_batch_size=micro_batch_size,
        )
        data.setup("fit")
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[StageScheduler(), capture],
            accumulate_grad_batches=8 // micro_batch_size,
            reload_dataloaders_every_n_epochs=1,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = SFTModule(str(tiny_base), suite, quantization="fp32", lora=None)
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 1
        return capture.gradients

    return gradients


def test_the_gradient_does_not_depend_on_accumulation(
    window_gradients: Callable[[int], Gradients], corpus: Corpus, tiny_base: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    corpus.load(["rows"])
    rows = corpus.loaded["rows"].rows
    loss, num_targets = torch.zeros(()), 0
    for row in rows:  # one at a time, without padding
        labels = torch.tensor(row.labels[1:])
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        loss = loss + functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        num_targets += int((labels != -100).sum())
    assert num_targets == sum(2**n + 1 for n in range(8))
    (loss / num_targets).backward()
    reference = {name: parameter.grad for name, parameter in model.named_parameters()}
    for micro_batch_size in (1, 2, 8):
        gradients = window_gradients(micro_batch_size)
        assert gradients.keys() == reference.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-7)


def test_evaluation_changes_no_bit_of_training(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluationSuite, "is_due", lambda self, step, boundaries: False)
    outcome = lab.fit("--trainer.log_every_n_steps=1")
    assert outcome.code == 0, outcome.err
    assert "val_loss/math" not in lab.run.data.metrics
    for key in ("train_loss/all", "train_loss/math", "train_loss/general"):
        assert lab.points(key) == finished.lab.points(key)
    weights = [torch.load(run.checkpoint)["state_dict"] for run in (lab, finished.lab)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_checkpoint_holds_adapters_and_no_base(finished: FinishedRun) -> None:
    checkpoint = torch.load(finished.lab.checkpoint, weights_only=True)
    # q, k, v, o, gate, up and down of 2 layers, A and B each.
    assert len(checkpoint["state_dict"]) == 2 * 7 * 2
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == 2 * 7 * 2
    assert checkpoint["global_step"] == 12
    assert "fit_loop" in checkpoint["loops"]
    adapters = sum(value.numel() for value in checkpoint["state_dict"].values())
    # Values and two moments in float32, and 100 kB for everything else.
    assert finished.lab.checkpoint.stat().st_size < 3 * 4 * adapters + 100_000


@pytest.mark.slow
def test_a_base_trained_in_full_is_all_in_the_checkpoint(lab: Lab, tiny_base: Path) -> None:
    from safetensors.torch import load_file

    outcome = lab.fit("--model.lora=null", "--data.stages.second.max_steps=1")
    assert outcome.code == 0, outcome.err
    base = load_file(tiny_base / "model.safetensors")
    trained = torch.load(lab.checkpoint, weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in trained} == set(base)
    assert not any(torch.equal(trained[f"model.{name}"], value) for name, value in base.items())
