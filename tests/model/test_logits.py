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
@pytest.mark.parametrize(
    ("trained", "precision", "times"),
    [
        ("the layers", None, 1),
        ("the layers", torch.bfloat16, 1),
        ("all weights", None, 2),  # the head's gradient needs the logits in the backward pass
        ("the layers", torch.float16, 2),  # the loss scale keeps small gradients
    ],
)
def test_chunks_give_the_same_losses_and_gradient(
    kind: str,
    trained: str,
    precision: torch.dtype | None,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(kind)
    if trained == "the layers":
        model.requires_grad_(False).model.layers.requires_grad_(True)
    weights = torch.linspace(-1, 2, len(TARGETS))  # no two losses count alike

    def nll() -> torch.Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            return hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS)

    whole = nll()
    expected = gradient(model, weights @ whole)
    held: list[int] = []
    real = functional.cross_entropy

    def watch(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        held.append(logits.numel())
        return real(logits, *args, **options)

    monkeypatch.setattr(functional, "cross_entropy", watch)
    monkeypatch.setattr(logits_module, "CHUNK_LOGITS", 10 * VOCAB_SIZE)
    chunked = nll()
    torch.testing.assert_close(chunked, whole)
    tolerance = {}
    if precision is not None:  # the states' gradient is rounded once more
        largest = expected.abs().max().item()
        tolerance = {"rtol": 0.0, "atol": torch.finfo(precision).eps * largest}
    torch.testing.assert_close(gradient(model, weights @ chunked), expected, **tolerance)
    assert held[:4] == [10 * VOCAB_SIZE] * 3 + [3 * VOCAB_SIZE]
    assert sorted(held) == sorted(times * held[:4])


@pytest.mark.parametrize(
    ("tied", "adapters"),
    [
        (True, {"trainable_token_indices": [7, 9]}),  # the head shares what is inside the decoder
        (False, {"trainable_token_indices": {"embed_tokens": [7, 9]}}),
        (False, {"target_modules": ["q_proj", "lm_head"]}),
        (False, {"modules_to_save": ["lm_head"]}),
    ],
)
def test_chunks_give_adapters_of_the_head_their_whole_gradient(
    tied: bool, adapters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = tiny_model("llama", tie_word_embeddings=tied)
    model = get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["q_proj"]} | adapters))
    expected = gradient(model, model(input_ids=IDS, labels=LABELS, use_cache=False).loss)
    monkeypatch.setattr(logits_module, "CHUNK_LOGITS", 10 * VOCAB_SIZE)
    chunked = hidden_states(model.get_base_model(), IDS, POSITIONS, PLACES).nll(TARGETS)
    torch.testing.assert_close(gradient(model, chunked.mean()), expected)


def test_chunks_that_are_only_read_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").requires_grad_(False)
    whole = hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS)
    monkeypatch.setattr(logits_module, "CHUNK_LOGITS", 10 * VOCAB_SIZE)
    chunked = hidden_states(model, IDS, POSITIONS, PLACES).nll(TARGETS)
    torch.testing.assert_close(chunked, whole)
    assert not chunked.requires_grad


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
