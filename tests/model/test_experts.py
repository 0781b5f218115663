"""Adapters of experts and routers, which are parameters or layers of their own kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_model

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.adapters import freeze_and_restart
from sft_lab.model.logits import check_logits
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import load_base, save_trained

IDS = torch.arange(5, 45).reshape(2, 20)


def adapted(base: Any) -> Any:
    """Return a base with adapters that already change its output."""
    model = add_adapters(base, Lora(r=4, lora_alpha=8), seed=0)
    change(model, 1)
    return model


@torch.no_grad()
def change(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_adapters_of_experts_are_merged_frozen_and_joined(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(tiny_model(kind))
    names = [name for name, _ in model.named_parameters() if "experts" in name and "lora" in name]
    assert names
    first = logits(model)
    torch.testing.assert_close(logits(merged_copy(model, torch.float32)), first)
    freeze_and_restart(model, seed=2)
    torch.testing.assert_close(logits(model), first)
    change(model, 2)
    both = logits(model)
    assert (both - first).abs().max() > 0.1
    torch.testing.assert_close(logits(merged_copy(model, torch.float32)), both)
    save_trained(model, tmp_path)
    joined = PeftModel.from_pretrained(tiny_model(kind), tmp_path)
    torch.testing.assert_close(logits(joined), both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "router"), [("llama4_text", "router"), ("phimoe", "router")])
def test_routers_that_return_more_than_a_product_get_no_adapter(kind: str, router: str) -> None:
    model = adapted(tiny_model(kind))
    assert not any(router in name and "lora" in name for name, _ in model.named_parameters())
    assert logits(model).isfinite().all()


def test_a_base_that_cannot_run_quantised_is_refused(tmp_path: Path) -> None:
    tiny_model("longcat_flash").save_pretrained(tmp_path)
    check_logits(load_base(str(tmp_path), "fp32", torch.float32))
    with pytest.raises(RequestError, match=r"Longcat.* computes no logits as it was loaded: mat1"):
        check_logits(load_base(str(tmp_path), "nf4", torch.float32))
