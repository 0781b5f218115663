"""Losses at target tokens against those that models compute themselves."""

from typing import Any

import pytest
import torch
from tiny_families import VOCAB_SIZE, tiny_model
from torch.nn import functional

from sft_lab.errors import RequestError
from sft_lab.model import logits as logits_module
from sft_lab.model.logits import check_logits, check_packing, hidden_states

IDS = torch.arange(60).reshape(3, 20) % 61 + 3
POSITIONS = torch.arange(20).expand(3, -1)
LABELS = torch.where(torch.arange(20) < 9, -100, IDS)
PLACES = torch.arange(60).reshape(3, 20)[:, 9:].flatten() - 1
TARGETS = IDS[:, 9:].flatten()


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "kind", ["gemma2", "granite", "cohere", "nanochat", "vaultgemma", "llama4_text", "mixtral"]
)
def test_the_loss_is_the_models_own_whatever_it_does_to_its_logits(kind: str) -> None:
    model = tiny_model(kind)
    check_logits(model)
    expected = model(input_ids=IDS, labels=LABELS, use_cache=False).loss
    found = hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradient(model, found), gradient(model, model(input_ids=IDS, labels=LABELS).loss)
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_chunks_give_the_same_losses_and_gradient(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind)
    whole = hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS)
    expected = gradient(model, whole.mean())
    held: list[int] = []
    real = functional.cross_entropy

    def watch(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        held.append(logits.numel())
        return real(logits, *args, **options)

    monkeypatch.setattr(functional, "cross_entropy", watch)
    monkeypatch.setattr(logits_module, "CHUNK_LOGITS", 10 * VOCAB_SIZE)
    chunked = hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradient(model, chunked.mean()), expected)
    # 33 targets in chunks of 10, each computed again in the backward pass.
    assert sorted(held) == sorted(2 * [10 * VOCAB_SIZE] * 3 + 2 * [3 * VOCAB_SIZE])


@pytest.mark.parametrize("kind", ["recurrent_gemma", "mamba", "gpt_oss", "bloom"])
def test_packed_rows_that_see_each_other_a_little_are_refused(kind: str) -> None:
    model = tiny_model(kind)
    check_logits(model)
    with pytest.raises(RequestError, match=rf"data\.packing: in {type(model).__name__} the rows"):
        check_packing(model.train())
    with pytest.raises(RequestError, match=r"data\.padding_free: in .* set data\.padding_free to"):
        check_packing(model, "data.padding_free")
    assert model.training


def test_packed_rows_apart_are_accepted() -> None:
    check_packing(tiny_model("llama"))
    check_packing(tiny_model("gemma2"))


def test_logits_that_need_more_than_the_decoders_output_are_refused() -> None:
    model = tiny_model("llama")
    plain = model.forward
    calls = []

    def forward(*args: Any, **options: Any) -> Any:
        calls.append(options)
        output = plain(*args, **options)
        output.logits = output.logits + options["input_ids"][..., None]
        return output

    model.forward = forward
    with pytest.raises(RequestError, match="LlamaForCausalLM depend on more than its decoder"):
        check_logits(model)
