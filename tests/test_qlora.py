from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.module import SFTModule
from sft_lab.qlora import (
    Lora,
    add_lora,
    check_head,
    load_base,
    merged_copy,
    plain_causal_lm,
    target_logits,
)

QUANTIZATIONS = ["nf4", "int8", "bf16", "fp32"]
# Largest difference of logits over the largest logit; int8 rounds activations too, merges do not.
TOLERANCE = {"nf4": 1e-4, "int8": 5e-2, "bf16": 5e-2, "fp32": 1e-5}
IDS = torch.arange(5, 45).reshape(2, 20)

MakeModel = Callable[..., Any]


@pytest.fixture
def make_model(tiny_base: Path) -> MakeModel:
    """Loads the tiny base and gives it adapters that already change its output."""

    def make(quantization: Any) -> Any:
        base = load_base(str(tiny_base), quantization, torch.float32)
        model = add_lora(base, Lora(r=4, lora_alpha=8), seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model

    return make


def gradient(model: Any) -> torch.Tensor:
    model.train().zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).float()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_evaluation_leaves_the_next_gradient_right(
    make_model: MakeModel, quantization: str
) -> None:
    model = make_model(quantization)
    before = gradient(model)
    logits(model)
    merged_copy(model, torch.float32)
    after = gradient(model)
    assert before.norm() > 0
    assert torch.cosine_similarity(before, after, dim=0) > 0.999


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_merged_copy_has_the_live_models_logits(make_model: MakeModel, quantization: str) -> None:
    model = make_model(quantization)
    live = logits(model)
    copy = logits(merged_copy(model, torch.float32))
    assert (copy - live).abs().max() < TOLERANCE[quantization] * live.abs().max()
    with model.disable_adapter():
        assert (copy - logits(model)).abs().max() > 0.1 * live.abs().max()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_merging_changes_no_bit_of_the_live_model(make_model: MakeModel, quantization: str) -> None:
    model = make_model(quantization)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    live = logits(model)
    merged_copy(model, torch.float32)
    assert torch.equal(logits(model), live)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_nf4_quantises_the_linear_layers_twice(make_model: MakeModel) -> None:
    layer = plain_causal_lm(make_model("nf4")).model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested


def test_the_head_is_computed_at_target_positions_only(make_model: MakeModel) -> None:
    model = plain_causal_lm(make_model("fp32")).eval()
    is_target = torch.rand(2, 19, generator=torch.Generator().manual_seed(0)) < 0.3
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(
        lambda module, args, output: rows.append(args[0].numel() // args[0].shape[-1])
    )
    with torch.no_grad():
        ours = target_logits(model, IDS, torch.ones_like(IDS), is_target)
    hook.remove()
    assert rows == [int(is_target.sum())]
    torch.testing.assert_close(ours, logits(model)[:, :-1][is_target])


def test_a_base_that_transforms_its_logits_is_refused() -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    size: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    for model in (
        CohereForCausalLM(CohereConfig(logit_scale=0.0625, **size)),
        Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=30.0, **size)),
    ):
        with pytest.raises(RequestError, match=f"{type(model).__name__} transforms its logits"):
            check_head(model)


def test_adapters_depend_on_their_seed_alone(tiny_base: Path) -> None:
    def values(seed: int) -> torch.Tensor:
        model = add_lora(load_base(str(tiny_base), "fp32", torch.float32), Lora(r=4), seed)
        return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = values(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(values(seed=3), first)
    assert not torch.equal(values(seed=4), first)


def test_every_linear_layer_but_the_head_gets_an_adapter(make_model: MakeModel) -> None:
    model = make_model("nf4")
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == linear


def test_unknown_target_modules_are_refused(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), "fp32", torch.float32)
    with pytest.raises(RequestError, match="query_key_value"):
        add_lora(base, Lora(target_modules=["query_key_value"]), seed=0)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_not_trained_in_full(quantization: Any) -> None:
    with pytest.raises(RequestError, match=rf"model\.lora is null, but a {quantization} base"):
        SFTModule("world://base", EvaluationSuite({}), quantization=quantization, lora=None)
