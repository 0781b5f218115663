from pathlib import Path

import pytest
import torch
from tiny_families import tiny_model
from tiny_lab import Lab

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora
from sft_lab.model.coverage import coverage
from sft_lab.model.kernels import check_attention, compile_layers, uncompiled
from sft_lab.model.logits import hidden_states
from sft_lab.model.qlora import load_base

IDS = torch.arange(5, 45).reshape(2, 20)
PLACES = torch.arange(1, 39)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_the_attention_that_is_asked_for_is_loaded(tiny_base: Path, name: str) -> None:
    check_attention(str(tiny_base), name)
    model = load_base(str(tiny_base), "fp32", torch.float32, name)
    assert model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("name", "why"), [("flash_attention_2", "it needs CUDA, found none"), ("fastest", "fastest")]
)
def test_an_attention_that_is_unavailable_is_refused(tiny_base: Path, name: str, why: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("what is unavailable differs with CUDA")
    with pytest.raises(RequestError, match=rf"^model\.attn_implementation {name} is .*{why}"):
        check_attention(str(tiny_base), name)


def test_compiled_layers_run_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def fake(function: object, **options: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(True)
            return function(*args, **kwargs)  # type: ignore[operator]

        return call

    model = tiny_model("llama")
    positions = torch.arange(20).expand(2, -1)
    expected = hidden_states(model, IDS, positions, PLACES).logits()
    monkeypatch.setattr(torch, "compile", fake)
    compile_layers(model)
    torch.testing.assert_close(hidden_states(model, IDS, positions, PLACES).logits(), expected)
    assert calls == [True] * 2  # layers
    with uncompiled(model):
        model(input_ids=IDS)
    assert len(calls) == 2


@pytest.mark.extended
def test_a_run_with_compiled_layers_has_the_losses_of_one_without(lab: Lab) -> None:
    found = []
    for arguments in ((), ("--model.torch_compile=true",)):  # dropout draws other values compiled
        short = [f"--data.stages.{name}.max_steps=2" for name in ("first", "second")]
        done = lab.fit(
            *short, "--trainer.log_every_n_steps=1", *arguments, "--model.lora.lora_dropout=0"
        )
        assert done.code == 0, done.err
        found.append(lab.points("train_loss/all", lab.runs[0].info.run_id))
    plain, compiled = found
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_what_is_adapted_and_quantised_is_counted(tmp_path: Path) -> None:
    tiny_model("gpt_oss").config.save_pretrained(tmp_path)
    found = coverage(str(tmp_path), "nf4", Lora())
    attention = {"k_proj": 2, "o_proj": 2, "q_proj": 2, "v_proj": 2}
    assert found.adapted == attention
    assert found.plain == {"experts.down_proj": 2, "experts.gate_up_proj": 2, "router": 2}
    # Of a layer: 3,072 in attention, 128 in the router, experts of 4 * (32 * 64 + 64 * 32 * 2).
    assert found.quantized_share == pytest.approx(3072 / (3072 + 128 + 4 * (32 * 64 + 32 * 128)))
    assert coverage(str(tmp_path), "bf16", None).quantized_share == 0


def test_experts_that_peft_adapts_are_named(tmp_path: Path) -> None:
    tiny_model("qwen3_moe").config.save_pretrained(tmp_path)
    found = coverage(str(tmp_path), "fp32", Lora())
    assert {"experts.down_proj", "experts.gate_up_proj", "q_proj"} <= found.adapted.keys()
    assert "experts.down_proj" not in found.plain
