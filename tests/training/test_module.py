"""Loss and gradient of the module in a real Trainer, and what its checkpoints hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import chat, write_jsonl
from lightning import Callback, Trainer
from tiny_lab import FinishedRun, Lab
from torch.nn import functional

from sft_lab.callbacks.stage_scheduler import StageScheduler
from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.module import SFTModule
from sft_lab.training.stage import Stage

Gradients = dict[str, torch.Tensor]


class Capture(Callback):
    """Sets the attention, and keeps the gradients of the first optimizer step and the losses.

    Args:
        attention: A name that transformers has for it.
    """

    def __init__(self, attention: str) -> None:
        self.attention = attention
        self.num_micro_batches = 0
        self.gradients: Gradients = {}
        self.nll = torch.zeros(2, dtype=torch.float64)
        self.target_tokens = torch.zeros(2, dtype=torch.int64)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.model.set_attn_implementation(self.attention)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any) -> None:
        self.num_micro_batches += 1
        self.nll += outputs["nll"]
        self.target_tokens += outputs["target_tokens"]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in pl_module.model.named_parameters()
        }


@pytest.fixture
def corpus(tiny_base: Path, tmp_path: Path) -> Corpus:
    """Eight rows with 2, 3, 5, 9, ... 129 target tokens, those of even places in a source apart."""
    rows = [chat("?" * (9 - n), "x" * 2**n) for n in range(8)]
    sources = {
        name: Source(str(write_jsonl(tmp_path / f"{name}.jsonl", rows[first::2])))
        for name, first in (("even", 0), ("odd", 1))
    }
    return Corpus(sources, str(tiny_base), max_length=140)


TrainWindow = Callable[..., Capture]


@pytest.fixture
def train_window(tiny_base: Path, corpus: Corpus) -> TrainWindow:
    """Trains the base in full on one window of 8 rows, cut into micro-batches."""

    def train(micro_batch_size: int, packed_by: str | None, attention: str) -> Capture:
        suite, capture = EvaluationSuite({}), Capture(attention)
        data = StagedDataModule(
            corpus,
            suite,
            {"only": Stage({"even": 1, "odd": 1}, lr=1e-3, epochs=1)},
            batch_size=8,
            micro_batch_size=micro_batch_size,
            **({packed_by: True} if packed_by else {}),
        )
        data.setup("fit")
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[StageScheduler(), capture],
            accumulate_grad_batches=8 // micro_batch_size,
            reload_dataloaders_every_n_epochs=1,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = SFTModule(str(tiny_base), suite, quantization="fp32", lora=None)
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 1
        return capture

    return train


@dataclass
class Reference:
    """What a window comes to when its rows are run one at a time, without padding."""

    gradients: Gradients
    nll: dict[str, float]
    num_targets: dict[str, int]


@pytest.fixture
def reference(corpus: Corpus, tiny_base: Path) -> Reference:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    corpus.load(["even", "odd"])
    losses: dict[str, torch.Tensor] = {}
    num_targets: dict[str, int] = {}
    for name, source in corpus.loaded.items():
        losses[name], num_targets[name] = torch.zeros(()), 0
        for row in source.rows:
            labels = torch.tensor(row.labels[1:])
            logits = model(input_ids=torch.tensor([list(row.input_ids)])).logits[0, :-1]
            losses[name] = losses[name] + functional.cross_entropy(
                logits, labels, reduction="sum", ignore_index=-100
            )
            num_targets[name] += int((labels != -100).sum())
    (sum(losses.values()) / sum(num_targets.values())).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Reference(gradients, {k: v.item() for k, v in losses.items()}, num_targets)


WAYS = [
    pytest.param(1, None, "sdpa", 8),
    pytest.param(2, None, "sdpa", 4),
    pytest.param(8, None, "eager", 1),
    # 331 tokens are three sequences of up to 140: the window is not full, and ends the pass.
    pytest.param(1, "packing", "sdpa", 3),
    pytest.param(2, "packing", "sdpa", 2),
    pytest.param(8, "packing", "sdpa", 1),
    pytest.param(2, "packing", "eager", 2),
    pytest.param(4, "padding_free", "sdpa", 2),
    pytest.param(8, "padding_free", "sdpa", 1),
    pytest.param(8, "padding_free", "eager", 1),
]


@pytest.mark.parametrize(("micro_batch_size", "packed_by", "attention", "num_micro_batches"), WAYS)
def test_neither_accumulation_nor_packing_changes_gradient_or_losses(
    train_window: TrainWindow,
    reference: Reference,
    micro_batch_size: int,
    packed_by: str | None,
    attention: str,
    num_micro_batches: int,
) -> None:
    assert reference.num_targets == {"even": 2 + 5 + 17 + 65, "odd": 3 + 9 + 33 + 129}
    trained = train_window(micro_batch_size, packed_by, attention)
    assert trained.num_micro_batches == num_micro_batches
    assert trained.gradients.keys() == reference.gradients.keys()
    for name, gradient in trained.gradients.items():
        torch.testing.assert_close(gradient, reference.gradients[name], rtol=1e-4, atol=1e-7)
    assert trained.nll.tolist() == pytest.approx(list(reference.nll.values()), rel=1e-5)
    assert trained.target_tokens.tolist() == list(reference.num_targets.values())


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
    state = checkpoint["callbacks"]["InLoopEvaluation"]["engines"][0]
    drafts = state["earlier"]["drafts"]  # token ids of the last answer to each prompt
    assert sum(drafts["lengths"]) == len(drafts["token_ids"]) > 0
    adapters = sum(value.numel() for value in checkpoint["state_dict"].values())
    # Values and two moments in float32, and 100 kB for everything else.
    assert finished.lab.checkpoint.stat().st_size < 3 * 4 * adapters + 100_000


@pytest.mark.slow
def test_a_base_trained_in_full_is_all_in_checkpoint_and_logged_model(
    lab: Lab, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    outcome = lab.fit("--model.lora=null", "--data.stages.second.max_steps=1")
    assert outcome.code == 0, outcome.err
    base = load_file(tiny_base / "model.safetensors")
    trained = torch.load(lab.checkpoint, weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in trained} == set(base)
    assert not any(torch.equal(trained[f"model.{name}"], value) for name, value in base.items())
    model = lab.logged_model(monkeypatch)
    names = ("--prompt=math: 1 plus 1?", "--max_new_tokens=4", "--temperature=1")
    spoken = lab("chat", lab.run.info.run_id, *names).out
    params = {"max_new_tokens": 4, "temperature": 1.0}
    assert model.predict([{"prompt": "math: 1 plus 1?"}], params=params) == [spoken[:-1]]


@pytest.mark.slow
def test_a_packed_run_trains_and_evaluates(lab: Lab) -> None:
    outcome = lab.fit("--data.packing=true", "--corpus.max_length=150")
    assert outcome.code == 0, outcome.err
    # Four rows fit in 150 tokens: two steps of four sequences a stage.
    stages = lab.json("record.json")["stages"]
    assert [stages[name]["steps"] for name in ("first", "second")] == [2, 2]
    tokens = sum(part["tokens"] for s in stages.values() for part in s["trained"].values())
    assert lab.points("progress/tokens")[4] == tokens
    assert lab.points("progress/samples")[4] == 20 + 25
    assert set(lab.points("val_loss/math")) == {0, 2, 4}
