from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from sft_lab.model.adapters import freeze_and_restart
from sft_lab.model.fused_lora import fuse_lora
from sft_lab.model.qlora import load_base
from sft_lab.model.unquantized import keep_dequantized
from tests.tiny_models import tiny

IDS = torch.arange(5, 35).reshape(2, 15)


def adapted(base: Any, **settings: Any) -> Any:
    """Return a base with adapters that change its output."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False, **settings
    )
    return peft.get_peft_model(base, config).train()


def result(model: Any) -> tuple[Tensor, Tensor]:
    """Return logits, and the gradient of all that is trained."""
    torch.manual_seed(1)
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits
    logits.log_softmax(-1)[..., 7].sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    return logits.detach(), torch.cat(found).detach()


def assert_close(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], bound: float
) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < bound * theirs.norm()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "bloom"])
def test_results_and_gradients_are_pefts_within_rounding(
    architecture: str, settings: dict[str, Any]
) -> None:
    # In float64, whose rounding of 1e-16 a random model does not blow up to what an error is.
    model = adapted(tiny(architecture), **settings).eval().double()
    expected = result(model)
    fuse_lora(model)
    assert_close(result(model), expected, 1e-12)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_a_quantised_base_under_autocast_is_pefts_within_bf16(
    tiny_base: Any, quantization: Any, kept: bool
) -> None:
    if kept and quantization != "nf4":
        return
    model = adapted(load_base(str(tiny_base), quantization, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        expected = result(model)
        if kept:
            keep_dequantized(model)
        fuse_lora(model)
        found = result(model)
    assert_close(found, expected, 0.05)  # bfloat16 rounds by up to 4e-3 at a time


def test_frozen_adapters_are_added_and_get_no_gradient(tiny_base: Any) -> None:
    model = adapted(load_base(str(tiny_base), "nf4", torch.float32))
    freeze_and_restart(model, seed=2)
    expected = result(model)
    fuse_lora(model)
    assert_close(result(model), expected, 1e-5)
    frozen = [p for name, p in model.named_parameters() if "frozen_1" in name]
    assert frozen
    assert all(p.grad is None for p in frozen)
    with model.disable_adapter():
        off = model(input_ids=IDS, use_cache=False).logits
    base = load_base(str(tiny_base), "nf4", torch.float32)
    assert torch.equal(off, base(input_ids=IDS, use_cache=False).logits)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_others_stay_pefts_own(settings: dict[str, Any]) -> None:
    model = adapted(tiny("llama"), **settings)
    expected = result(model)
    fuse_lora(model)
    for found, wanted in zip(result(model), expected, strict=True):
        assert torch.equal(found, wanted)
