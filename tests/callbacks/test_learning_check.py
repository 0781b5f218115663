"""Runs that learn nothing: their losses or weights are not finite, or stay as they are."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_lab import Lab

from sft_lab.training.learning import LossWatch, is_finite, is_untrained

BREAKER = '''
import torch
from lightning import Callback


class Break(Callback):
    """Sets every trained weight after a step to a value, as a rate that is too high does."""

    def __init__(self, step: int, value: float, every: bool = False) -> None:
        self.step, self.value, self.every = step, value, every

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step or self.every:
            for parameter in pl_module.parameters():
                if parameter.requires_grad:
                    parameter.fill_(self.value)
'''
BREAK = "--trainer.callbacks+=breaker.Break"


def broken(lab: Lab, step: int, value: str, *arguments: str) -> Any:
    lab.write("breaker.py", BREAKER)
    values = (f"--trainer.callbacks.step={step}", f"--trainer.callbacks.value={value}")
    return lab.fit(BREAK, *values, *arguments)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(lab: Lab) -> None:
    outcome = broken(lab, 2, ".nan", "--checkpoint.every_n_steps=1")
    assert outcome.code == 1
    # The checkpoint of step 2 would hold what has broken.
    assert outcome.err.splitlines()[-1] == (
        "error: a trained weight is not a finite number at step 2 (stage 'first', lr 0.01); "
        "check data.stages.first.lr and the stage's rows (sft-lab inspect); the last good "
        f"checkpoint is mlruns/checkpoints/{lab.run.info.run_id}/last.ckpt."
    )
    assert lab.run.info.status == "FAILED"
    saved = torch.load(lab.checkpoint, weights_only=True)
    assert saved["global_step"] == 1
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())


def test_a_loss_that_is_not_finite_names_its_source(lab: Lab) -> None:
    outcome = broken(
        lab, 2, ".nan", "--checkpoint.every_n_steps=50", "--evaluation.every_n_steps=50"
    )
    assert outcome.code == 1
    assert "error: the loss of math is not a finite number at step 3 (stage 'first'" in outcome.err
    assert "there is no checkpoint yet" in outcome.err
    assert max(lab.points("train_loss/all"), default=0) < 3


def test_adapters_that_do_not_move_are_warned_of_once_a_stage(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = broken(lab, 0, "0", "--trainer.callbacks.every=true")
    assert outcome.code == 0, outcome.err
    found = [record.message for record in caplog.records if "learned nothing" in record.message]
    assert [line.split(":")[0] for line in found] == ["step 5", "step 12"]
    assert "their B is still 0 (stage 'first', lr" in found[0]


def test_a_loss_that_stays_where_it_is_is_noticed() -> None:
    watch = LossWatch(num_tokens=1000)
    assert not any(watch.see(loss) for loss in (2.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    assert watch.see(0.0) == "the loss is constant, 0.0 in each of the last 5 steps"
    watch = LossWatch(num_tokens=1000)
    near = [math.log(1000) + offset for offset in (0, 9e-4, -9e-4, 1e-4, 0)]
    said = [watch.see(loss) for loss in near]
    assert said[:4] == [None] * 4
    assert said[4] == (
        "the loss stays at 6.908 nats, as if guessing among all tokens of the vocabulary"
    )
    assert watch.see(math.log(1000) + 2e-3) is None


def test_weights_are_judged_by_what_is_trained() -> None:
    model = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2), "lora_B": torch.nn.Linear(2, 2)})
    wrapped = torch.nn.ModuleDict({"layer": model})
    assert is_finite(wrapped)
    assert not is_untrained(wrapped)
    torch.nn.init.zeros_(model["lora_B"].weight)
    torch.nn.init.zeros_(model["lora_B"].bias)
    assert is_untrained(wrapped)
    model["lora_A"].weight.data[0, 0] = math.inf
    assert not is_finite(wrapped)
    model["lora_A"].requires_grad_(False)
    assert is_finite(wrapped)
    full: Any = SimpleNamespace(named_parameters=lambda: [], parameters=lambda: [])
    assert not is_untrained(full)
