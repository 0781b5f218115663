"""The training loss: negative log-likelihood of target tokens, and what a stage adds to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sft_lab.errors import RunError
from sft_lab.model.adapters import adapters_off
from sft_lab.model.logits import hidden_states
from sft_lab.model.qlora import plain_causal_lm
from sft_lab.training.batches import Batch


@dataclass(frozen=True)
class TargetTokens:
    """The target tokens of one micro-batch, in row-major order.

    Attributes:
        nll: Negative log-likelihood of each target, float32 ``[N]``, with gradient.
        target_ids: Token id of each target, int64 ``[N]``.
        source_ids: Each target's source as a position in ``sources``, int64 ``[N]``.
        sources: Names of the corpus's sources.
        logits: The model's logits at each target, ``[N, V]``, with gradient; None in a stage
            without terms, whose loss never holds them all.
        base_logits: The base model's logits at each target, ``[N, V]``, without gradient; None
            unless a term of the stage asks for them.
    """

    nll: Tensor
    target_ids: Tensor
    source_ids: Tensor
    sources: tuple[str, ...]
    logits: Tensor | None = None
    base_logits: Tensor | None = None

    @property
    def log_likelihoods(self) -> Tensor:
        """Log-likelihood of each target, float32 ``[N]``, with gradient."""
        return -self.nll

    def by_source(self) -> tuple[Tensor, Tensor]:
        """Sum up by source.

        Returns:
            Negative log-likelihood, float64 ``[S]``, without gradient, and tokens, int64 ``[S]``.
        """
        none = self.source_ids.new_zeros(len(self.sources))
        nll = self.nll.detach().double()
        # Unlike bincount, index_add does not make the device wait.
        return (
            none.double().index_add(0, self.source_ids, nll),
            none.index_add(0, self.source_ids, torch.ones_like(self.source_ids)),
        )


class LossTerm:
    """A change to the loss of a stage: weights of target tokens, a penalty per token, or both.

    With weights w and penalties p of a stage's terms, the loss of an optimizer step is the sum of
    ``w * nll + p`` over the target tokens of its accumulation window, divided by their number; the
    weights of several terms multiply, their penalties add up. The number does not depend on the
    weights, so that halving all of them halves the loss. The logged ``train_loss`` stays the plain
    negative log-likelihood, comparable between stages and runs.

    Set ``stages.X.loss: [{class_path: my_losses.MyTerm, init_args: {...}}]``. A term depends on
    nothing but its arguments and the tokens: state of its own would not be in a checkpoint. Draw
    random numbers, if any, from torch's default generator, whose state is in the checkpoint.

    Attributes:
        needs_base_logits: Compute ``tokens.base_logits``, which costs a second forward pass without
            gradient.
    """

    needs_base_logits = False

    def weights(self, tokens: TargetTokens) -> Tensor | None:
        """Return a weight for each target token, ``[N]``, or None for 1."""
        return None

    def penalty(self, tokens: TargetTokens) -> Tensor | None:
        """Return what to add to each target token's loss in nats, ``[N]``, or None for 0."""
        return None


def read_targets(
    model: Any, batch: Batch, sources: Sequence[str], terms: Sequence[LossTerm] = ()
) -> TargetTokens:
    """Run a model over a batch and return its target tokens.

    Args:
        model: A transformers model, or a PEFT model around one.
        batch: The micro-batch.
        sources: Names of the corpus's sources.
        terms: Terms of the loss, for which logits are kept.
    """
    causal_lm, places = plain_causal_lm(model), batch["target_places"]
    # A token is predicted at the position before it.
    inputs = (batch["input_ids"], batch["position_ids"], places - 1)
    target_ids = batch["labels"].flatten()[places]
    logits = base_logits = None
    if any(term.needs_base_logits for term in terms):
        with adapters_off(model), torch.no_grad():
            base_logits = hidden_states(causal_lm, *inputs).logits()
    hidden = hidden_states(causal_lm, *inputs)
    if terms:
        logits = hidden.logits()
        nll = functional.cross_entropy(logits.float(), target_ids, reduction="none")
    else:
        nll = hidden.nll(target_ids)
    return TargetTokens(
        nll=nll,
        target_ids=target_ids,
        source_ids=batch["source_ids"].flatten()[places],
        sources=tuple(sources),
        logits=logits,
        base_logits=base_logits,
    )


def token_losses(tokens: TargetTokens, terms: Sequence[LossTerm]) -> Tensor:
    """Return the loss of each target token, ``[N]``; without terms the ``nll`` itself.

    Raises:
        ValueError: If a term returns another shape than one value for each target token.
    """
    losses = tokens.nll
    for term in terms:
        if (weights := term.weights(tokens)) is not None:
            losses = losses * _checked(weights, tokens, f"{type(term).__name__}.weights")
    for term in terms:
        if (penalty := term.penalty(tokens)) is not None:
            losses = losses + _checked(penalty, tokens, f"{type(term).__name__}.penalty")
    return losses


def _checked(values: Tensor, tokens: TargetTokens, what: str) -> Tensor:
    if values.shape != tokens.nll.shape:
        raise RunError(
            f"{what} must return a tensor of shape {list(tokens.nll.shape)}, one value for each "
            f"target token, got {list(values.shape)}. Correct it, and start the run again.",
            can_resume=False,
        )
    return values
