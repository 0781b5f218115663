from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.adapters import add_frozen_adapters, kept_weights, trained_weights
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import load_base, save_trained
from sft_lab.model.unquantized import dequantized
from sft_lab.training.hand_over import AverageStages, Continue, HandOver, HandOvers, NewAdapter
from sft_lab.training.stage import Stage, check_needs, check_stages

IDS = torch.arange(5, 45).reshape(2, 20)
LORA = Lora(r=4, lora_alpha=8, lora_dropout=0.5)


def make_model(tiny_base: Path, quantization: Any = "fp32") -> Any:
    return add_adapters(load_base(str(tiny_base), quantization, torch.float32), LORA, seed=0)


def train_a_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def trained_model(tiny_base: Path, quantization: Any = "fp32") -> tuple[Any, Any]:
    model = make_model(tiny_base, quantization)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(2):
        train_a_step(model, optimizer)
    return model, optimizer


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.eval()
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    model.train()
    return found


def hand_overs(*policies: HandOver) -> HandOvers:
    return HandOvers({f"s{n}": policy for n, policy in enumerate(policies)}, seed=0)


def test_the_optimizer_is_fresh_or_kept(tiny_base: Path) -> None:
    model, optimizer = trained_model(tiny_base)
    before = logits(model)
    policies = hand_overs(Continue(), Continue("keep"), Continue("fresh"))
    policies.start("s1", model, [optimizer])
    assert optimizer.state
    policies.start("s2", model, [optimizer])
    assert not optimizer.state
    assert torch.equal(logits(model), before)
    assert policies.state_dict() == {"ends": {}}


@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_a_new_adapter_computes_the_same_until_it_is_trained(
    tiny_base: Path, tmp_path: Path, quantization: Any
) -> None:
    model, optimizer = trained_model(tiny_base, quantization)
    before, weights = logits(model), trained_weights(model)
    policies = hand_overs(Continue(), NewAdapter(), NewAdapter())
    policies.start("s1", model, [optimizer])
    assert torch.equal(logits(model), before)
    assert set(trained_weights(model)) == set(weights)
    train_a_step(model, optimizer)
    policies.start("s2", model, [optimizer])
    train_a_step(model, optimizer)
    now = logits(model)
    assert not torch.equal(now, before)
    frozen = {k.replace(".frozen_1.", ".default."): v for k, v in model.named_parameters()}
    assert all(torch.equal(frozen[name], value) for name, value in weights.items())

    # A checkpoint's weights restore all adapters.
    kept = {name: p.detach() for name, p in model.named_parameters() if name in kept_weights(model)}
    restored = make_model(tiny_base, quantization)
    add_frozen_adapters(restored, kept)
    restored.load_state_dict(kept, strict=False)
    assert torch.equal(logits(restored), now)
    assert set(trained_weights(restored)) == set(weights)

    # Evaluation weights and a saved adapter hold all of them.
    scale = now.abs().max()
    copy = merged_copy(model, torch.float32)
    assert (copy(input_ids=IDS, use_cache=False).logits - now).abs().max() < 1e-4 * scale
    with dequantized(model):
        assert (logits(model) - now).abs().max() < 1e-4 * scale
    save_trained(model, tmp_path / "adapter")
    base = load_base(str(tiny_base), quantization, torch.float32)
    saved = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert (logits(saved) - now).abs().max() < 1e-4 * scale


def test_stages_are_averaged_by_their_ends(tiny_base: Path) -> None:
    model, optimizer = trained_model(tiny_base)
    first = trained_weights(model)
    policies = hand_overs(Continue(), Continue(), AverageStages(), Continue())
    policies.start("s1", model, [optimizer])
    train_a_step(model, optimizer)
    second = trained_weights(model)
    restored = hand_overs(Continue(), Continue(), AverageStages())
    restored.load_state_dict(policies.state_dict())
    restored.start("s2", model, [optimizer])
    for name, value in trained_weights(model).items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert list(restored.ends) == ["s0", "s1"]
    assert not optimizer.state


def test_ends_that_were_not_kept_are_refused() -> None:
    policies = hand_overs(Continue(), Continue(), AverageStages())
    policies.check(num_ended=0)  # at the end of the first stage at the latest
    with pytest.raises(RequestError, match=r"data.stages.s2.hand_over needs .* stage 's0'"):
        policies.check(num_ended=1)
    policies.load_state_dict({"ends": {"s0": {}}})
    policies.check(num_ended=1)


def stage(hand_over: HandOver | None = None, optimizer: Any = "fresh") -> Stage:
    return Stage({"a": 1}, lr=1e-3, epochs=1, hand_over=hand_over, optimizer=optimizer)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage(NewAdapter())], "data.stages.s0.hand_over: nothing is handed over to the first"),
        ([stage(), stage(NewAdapter(), "keep")], "data.stages.s1.optimizer .* got keep next to"),
        ([stage(), stage(NewAdapter()), stage(AverageStages())], "data.stages.s2.hand_over: Aver"),
    ],
)
def test_a_contradictory_hand_over_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_stages({f"s{n}": stage for n, stage in enumerate(stages)}, ["a"])


def test_a_new_adapter_needs_adapters() -> None:
    stages = {"s0": stage(), "s1": stage(NewAdapter())}
    check_needs(stages, Lora())
    with pytest.raises(RequestError, match=r"s1.hand_over: NewAdapter needs the LoRA"):
        check_needs(stages, None)
