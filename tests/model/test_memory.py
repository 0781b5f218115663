"""Test estimates of memory against real models, optimizers and steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.logits import hidden_states
from sft_lab.model.memory import Memory, int8_bytes, nf4_bytes, optimizer_bytes
from sft_lab.model.qlora import compute_dtype, load_base, plain_causal_lm
from sft_lab.model.size import model_size

LORA = Lora(r=4, lora_alpha=8)


def real_bytes(model: Any) -> int:
    """Return the bytes of a loaded base, including the scales and tables of quantised weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            tensors += [state.absmax, state.code, state.offset, nested.absmax, nested.code]
    tensors += [m.weight.SCB for m in model.modules() if getattr(m, "state", None) is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
@pytest.mark.parametrize("base", ["tiny", "world://base"])
def test_a_loaded_base_has_the_estimated_bytes(
    base: str, quantization: Any, precision: str, tiny_base: Path
) -> None:
    name = str(tiny_base) if base == "tiny" else base
    model = load_base(name, quantization, compute_dtype(precision))
    size = model_size(name, quantization, LORA, precision)
    assert size.weights == real_bytes(model)
    plain = model_size(name, "fp32", LORA, precision)
    assert (
        size.parameters
        == plain.parameters
        == sum(
            parameter.numel() for parameter in load_base(name, "fp32", torch.float32).parameters()
        )
    )


@pytest.mark.parametrize(
    "lora", [LORA, Lora(r=32), Lora(r=2, target_modules=["q_proj", "down_proj"]), None]
)
def test_trained_parameters_and_optimizer_state_equal_the_real_ones(
    lora: Lora | None, tiny_base: Path
) -> None:
    size = model_size(str(tiny_base), "fp32", lora, "32-true")
    model = load_base(str(tiny_base), "fp32", torch.float32)
    model = model if lora is None else add_adapters(model, lora, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert size.trained_parameters == sum(parameter.numel() for parameter in trained)
    assert size.is_adapted == (lora is not None)
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    gradients = [parameter.grad for parameter in trained]
    assert size.trained_bytes == sum(
        g.numel() * g.element_size() for g in gradients if g is not None
    )
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    real = sum(value.numel() * value.element_size() for value in state)
    assert optimizer_bytes(size.trained, "adamw") == real


def test_small_tensors_of_the_8_bit_optimizer_keep_float32() -> None:
    # 4096 of a byte each, twice, and 2 * 16 scales; 4095 of 4 bytes each, twice.
    assert optimizer_bytes([(4096, 4)], "paged_adamw_8bit") == 2 * 4096 + 2 * 16 * 4
    assert optimizer_bytes([(4095, 4)], "paged_adamw_8bit") == 8 * 4095


def test_quantised_layers_round_their_blocks_up() -> None:
    # 65 weights are 33 bytes, two scales, one scale of scales, and 273 numbers of the tables.
    assert nf4_bytes(65) == 33 + 2 + 4 + 4 * 273
    assert int8_bytes(out_features=10, in_features=7) == 70 + 40


def peak_bytes(step: Any) -> int:
    """Return the peak of a function's allocations, without memory allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    taken = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return int(np.cumsum([size for _, size in taken]).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "lora", "checkpointing"),
    [
        ("nf4", Lora(r=32, lora_alpha=64), False),
        ("nf4", Lora(r=32, lora_alpha=64, lora_dropout=0.1), False),
        ("nf4", Lora(r=32, lora_alpha=64), True),
        ("fp32", None, False),
    ],
)
def test_a_step_takes_within_a_quarter_of_the_estimate(
    quantization: Any, lora: Lora | None, checkpointing: bool
) -> None:
    size = model_size("world://base", quantization, lora, "32-true")
    model = load_base("world://base", quantization, torch.float32)
    model = model if lora is None else add_adapters(model, lora, seed=0)
    if checkpointing:
        plain_causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    input_ids = torch.arange(4 * 64).reshape(4, 64) + 5
    positions = torch.arange(64).expand(4, 64)
    places = torch.arange(4 * 64).reshape(4, 64)[:, 40:63].flatten()
    target_ids = input_ids.flatten()[places + 1]

    def step() -> None:
        states = hidden_states(plain_causal_lm(model), input_ids, positions, places)
        states.nll(target_ids).mean().backward()

    step()  # allocates the gradients
    tokens = input_ids.numel()
    work = size.backward(tokens, len(places), in_chunks=True)
    estimate = size.kept(tokens, checkpointing=checkpointing) + work
    assert estimate == pytest.approx(peak_bytes(step), rel=0.25)


def test_training_and_evaluation_alternate() -> None:
    memory = Memory(
        weights=100,
        adapters=10,
        gradients=10,
        optimizer=20,
        activations=30,
        backward=5,
        evaluation_weights=7,
        kv_cache=8,
        evaluation_work=9,
    )
    assert (memory.resident, memory.training, memory.evaluating) == (140, 35, 24)
    assert memory.total == 175
    assert memory.to_json()["total"] == 175
    assert replace(memory, exchanged=10).total == 185


def test_a_missing_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"model\.base: no model can be loaded"):
        model_size(str(tmp_path), "nf4", LORA, "32-true")
