from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sft_lab.errors import RunError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.adapters import freeze_and_restart
from sft_lab.model.qlora import load_base
from sft_lab.training.batches import Batch
from sft_lab.training.loss import LossTerm, TargetTokens, read_targets, token_losses


@dataclass
class OneSource(LossTerm):
    source: str
    weight: float

    def weights(self, tokens: TargetTokens) -> torch.Tensor:
        is_source = tokens.source_ids == tokens.sources.index(self.source)
        return torch.where(is_source, self.weight, 1.0)


class NeedsBase(LossTerm):
    needs_base_logits = True


class PenalizeLikelihood(LossTerm):
    def penalty(self, tokens: TargetTokens) -> torch.Tensor:
        return 0.5 * tokens.log_likelihoods


@pytest.fixture
def tokens() -> TargetTokens:
    return TargetTokens(
        nll=torch.tensor([1.0, 2.0, 4.0]),
        target_ids=torch.tensor([0, 1, 2]),
        source_ids=torch.tensor([0, 1, 1]),
        sources=("math", "general"),
    )


def test_without_terms_the_loss_is_the_nll_itself(tokens: TargetTokens) -> None:
    assert token_losses(tokens, []) is tokens.nll
    assert token_losses(tokens, [LossTerm()]) is tokens.nll


def test_weights_multiply_and_penalties_add_up(tokens: TargetTokens) -> None:
    terms = [PenalizeLikelihood(), OneSource("general", 3.0), OneSource("general", 0.5)]
    assert token_losses(tokens, terms).tolist() == [0.5, 3 - 1, 6 - 2]


def test_a_term_of_another_shape_is_refused(tokens: TargetTokens) -> None:
    class Summed(LossTerm):
        def penalty(self, tokens: TargetTokens) -> torch.Tensor:
            return tokens.nll.sum()

    with pytest.raises(RunError, match=r"Summed.penalty must return .* \[3\], .* got \[\]"):
        token_losses(tokens, [Summed()])


def batch() -> Batch:
    input_ids = torch.arange(5, 45).reshape(2, 20)
    labels = input_ids.clone()
    labels[:, :10] = -100
    return Batch(
        input_ids=input_ids,
        position_ids=torch.arange(20).expand(2, -1),
        labels=labels,
        source_ids=torch.tensor([[0], [1]]).expand(2, 20),
        target_places=torch.arange(40).reshape(2, 20)[:, 10:].flatten(),
        window_target_tokens=torch.tensor(20),
    )


@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_base_logits_are_those_of_the_base(tiny_base: Path, quantization: Any) -> None:
    lora = Lora(r=4, lora_alpha=8, lora_dropout=0.5)
    model = add_adapters(load_base(str(tiny_base), quantization, torch.float32), lora, seed=0)
    base = read_targets(model, batch(), ["a", "b"], [LossTerm()]).logits  # B is zero
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    freeze_and_restart(model, seed=1)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        alone = read_targets(model, batch(), ["a", "b"])
    with torch.random.fork_rng():
        found = read_targets(model, batch(), ["a", "b"], [NeedsBase()])
    assert torch.equal(torch.get_rng_state(), state)
    assert found.base_logits is not None
    assert torch.equal(found.base_logits, base)
    assert not found.base_logits.requires_grad
    # Asking for them changes nothing in what is trained.
    assert torch.equal(found.nll, alone.nll)
    assert alone.logits is None
    assert not torch.equal(found.logits, base)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    assert model.training
    assert alone.base_logits is None
    assert alone.source_ids.tolist() == [0] * 10 + [1] * 10


class Waits(TorchDispatchMode):
    """Collects operations whose results' sizes or values a device would have to send back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [t for t in (args[1] if name == "index" else []) if t is not None]
        if name in ("nonzero", "_local_scalar_dense", "bincount", "masked_select") or any(
            mask.dtype == torch.bool for mask in masks
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_waits_for_no_device(tiny_base: Path) -> None:
    model = load_base(str(tiny_base), "fp32", torch.float32)
    inputs = batch()
    with Waits() as decoder:  # transformers looks for packed rows
        model.model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"])
    with Waits() as ours:
        tokens = read_targets(model, inputs, ["a", "b", "c"])
        nll, target_tokens = tokens.by_source()
        (token_losses(tokens, []).sum() / inputs["window_target_tokens"]).backward()
    assert ours.found == decoder.found
    assert target_tokens.tolist() == [10, 10, 0]
    assert nll.tolist() == pytest.approx([*tokens.nll.view(2, 10).sum(1).tolist(), 0])
    with Waits() as masked:
        float(tokens.nll[tokens.nll > 0].sum())
    assert len(masked.found) == 2
