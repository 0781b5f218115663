"""Adapters of PEFT's own config classes: trained, checkpointed, merged, exported, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, Peft, adapters_of, add_adapters
from sft_lab.model.adapters import kept_weights
from sft_lab.model.coverage import coverage
from sft_lab.model.logits import check_adapters_act
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import load_base, save_trained
from sft_lab.model.size import model_size
from sft_lab.model.unquantized import dequantized

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
ALL: dict[str, Any] = {"r": 4, "target_modules": "all-linear"}
SOME: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
TIED: dict[str, Any] = {"target_modules": ["embed_tokens", "q_proj"], "r": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"use_dora": True, **ALL}),
    "rsLoRA": ("LoraConfig", {"use_rslora": True, **ALL}),
    "PiSSA": ("LoraConfig", {"init_lora_weights": "pissa", **ALL}),
    "modules_to_save": ("LoraConfig", {"modules_to_save": ["lm_head"], **ALL}),
    "trainable tokens": ("LoraConfig", {"trainable_token_indices": [5, 7], **ALL}),
    "embeddings": ("LoraConfig", TIED),
    "biases": ("LoraConfig", {"bias": "all", **ALL}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, **SOME}),
    "IA3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "LoHa": ("LoHaConfig", {"r": 4, **SOME}),
    "VeRA": ("VeraConfig", {"r": 4, **SOME}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
}
IN_NF4 = [name for name in KINDS if name not in ("PiSSA", "LoHa")]


def peft(kind: str) -> Peft:
    name, arguments = KINDS[kind]
    return Peft(f"peft.{name}", arguments)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("kind", "quantization"), [*((k, "fp32") for k in KINDS), *((k, "nf4") for k in IN_NF4)]
)
def test_adapters_of_every_kind_survive_checkpoint_merge_and_export(
    tiny_base: Path, tmp_path: Path, kind: str, quantization: Any
) -> None:
    from peft import PeftModel

    def loaded() -> Any:
        return load_base(str(tiny_base), quantization, torch.float32)

    base = logits(loaded())
    model = add_adapters(loaded(), peft(kind), seed=7)
    check_adapters_act(model)
    assert distance(logits(model), base) < 1e-5  # they start as the base's function
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    live = logits(model)
    assert distance(live, base) > 1e-3
    kept = kept_weights(model)
    checkpoint = {name: value.clone() for name, value in model.state_dict().items() if name in kept}
    resumed = add_adapters(loaded(), peft(kind), seed=7)
    resumed.load_state_dict(checkpoint, strict=False)
    assert torch.equal(logits(resumed), live)
    with dequantized(model):
        assert distance(logits(model), live) < 1e-5
    merged = merged_copy(model, torch.float32)
    assert distance(logits(merged), live) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert distance(logits(load_base(str(tmp_path / "merged"), "fp32", torch.float32)), live) < 1e-5
    save_trained(model, tmp_path / "adapter")
    exported = PeftModel.from_pretrained(loaded(), tmp_path / "adapter")
    assert distance(logits(exported), live) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_said_and_counted_before_the_base_loads(
    tiny_base: Path, kind: str
) -> None:
    found = coverage(str(tiny_base), "fp32", peft(kind))
    assert found.adapted
    if kind == "modules_to_save":
        assert found.whole == {"lm_head": 1}
    if kind == "trainable tokens":
        assert found.whole == {"tokens of embed_tokens": 2, "tokens of lm_head": 2}  # tied
        assert "trained besides: tokens of embed_tokens x2, tokens of lm_head x2;" in str(found)
    if kind == "LoHa":  # computes with values, which fake tensors lack
        return
    model = add_adapters(load_base(str(tiny_base), "fp32", torch.float32), peft(kind), seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = model_size(str(tiny_base), "fp32", peft(kind), "32-true")
    assert size.trained_parameters == trained


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("LoraConfi", {}, r"peft.LoraConfi: it cannot be imported: .*; name a config class"),
        ("PeftModel", {}, r"peft.PeftModel: it is not a PEFT config; name one, such as"),
        ("PromptTuningConfig", {"num_virtual_tokens": 2}, r"it adds to the input of the model"),
        ("AdaLoraConfig", {"total_step": 9, **SOME}, r"it needs calls of its own during training"),
        ("LoraConfig", {"alora_invocation_tokens": [5], **SOME}, r"acts after certain tokens only"),
        ("LoraConfig", {"init_lora_weights": "eva", **SOME}, r"eva needs a pass over data"),
        ("LoraConfig", {"init_lora_weights": "pissa_niter_4"}, r"splits the base at random"),
        ("OFTConfig", {"oft_block_size": 8, "r": 8}, r"OFTConfig: .*; change model.peft.init_args"),
        ("LoraConfig", {"r": "four", **SOME}, r"does not fit LlamaForCausalLM: '<=' not supported"),
        ("LoraConfig", {"target_modules": ["query"]}, r"Target modules \{'query'\} not found"),
        (
            "ShiraConfig",
            {"r": 2, **SOME},
            r"it cannot be built, .*, without the base's",
        ),
        ("LoraConfig", {"inference_mode": True, **SOME}, r"trains nothing of LlamaForCausalLM"),
    ],
)
def test_adapters_that_cannot_be_trained_are_refused_before_the_base_loads(
    tiny_base: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        coverage(str(tiny_base), "fp32", Peft(f"peft.{name}", arguments))
    assert str(refused.value).startswith("model.peft")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        # Its shapes are of the weight, which is packed.
        ("LoHaConfig", {"r": 4, **SOME}, "mat1 and mat2 .*; set model.quantization to bf16"),
        ("PolyConfig", {"r": 4, **SOME}, "task_ids should not be None"),
    ],
)
def test_adapters_that_compute_nothing_here_are_refused_as_they_load(
    tiny_base: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    base = load_base(str(tiny_base), "nf4", torch.float32)
    model = add_adapters(base, Peft(f"peft.{name}", arguments), seed=0)
    with pytest.raises(RequestError, match=message):
        check_adapters_act(model)


def test_the_short_form_and_peft_exclude_each_other() -> None:
    assert adapters_of(Lora(r=3), None) == Lora(r=3)
    assert adapters_of(None, None) is None
    assert adapters_of(None, {"class_path": "peft.IA3Config"}) == Peft("peft.IA3Config")
    with pytest.raises(RequestError, match=r"set model.lora to null, or leave model.peft out"):
        adapters_of(Lora(), {"class_path": "peft.IA3Config"})
    for wrong in ({}, {"class_path": 3}, {"class_path": "peft.IA3Config", "r": 3}):
        with pytest.raises(RequestError, match=r"model.peft takes class_path and init_args"):
            adapters_of(None, wrong)
