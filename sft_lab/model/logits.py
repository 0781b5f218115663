"""Compute logits of target tokens only, and check that an architecture allows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sft_lab.errors import RequestError


def target_logits(
    causal_lm: Any, input_ids: Tensor, position_ids: Tensor, is_target: Tensor
) -> Tensor:
    """Compute the LM head's logits at positions that carry loss only.

    Args:
        causal_lm: A transformers causal language model, adapters included.
        input_ids: int64 ``[B, T]``.
        position_ids: int64 ``[B, T]``; a restart begins a new row, which cannot see earlier ones.
        is_target: bool ``[B, T - 1]``, true where the *next* token carries loss.

    Returns:
        Logits ``[N, V]``, one row per true value of ``is_target``, in row-major order.
    """
    size = input_ids.shape
    if "flash" in str(causal_lm.config._attn_implementation):
        # Flash attention reads position ids in a batch of one row only, and ignores them in others.
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    # With a mask or a cache, transformers would ignore where position ids restart.
    hidden = causal_lm.get_decoder()(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state.view(*size, -1)
    return causal_lm.get_output_embeddings()(hidden[:, :-1][is_target])


@torch.no_grad()
def check_head(causal_lm: Any) -> None:
    """Check that logits are finite, causal and unchanged after the head, as the loss assumes.

    Raises:
        RequestError: If they are not finite, depend on later tokens, or differ from those of the
            head applied to the decoder's output.
    """
    device = next(causal_lm.parameters()).device
    input_ids = position_ids = torch.arange(4, device=device)[None]
    is_target = torch.ones_like(input_ids[:, 1:], dtype=torch.bool)
    with evaluating(causal_lm):
        expected = causal_lm(input_ids=input_ids, use_cache=False).logits[0, :-1]
        ours = target_logits(causal_lm, input_ids, position_ids, is_target)
        later = input_ids.clone()
        later[:, -1] = 0
        others = causal_lm(input_ids=later, use_cache=False).logits[0, :-1]
    name = type(causal_lm).__name__
    if not expected.isfinite().all():
        raise RequestError(
            f"model.base: the logits of {name} are not finite; its weights are damaged, or too "
            "large for trainer.precision."
        )
    if not torch.allclose(others.float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise RequestError(
            f"model.base: in {name} a token sees later ones, so it is not a causal language model; "
            "name one that is."
        )
    if not torch.allclose(ours.float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise RequestError(
            f"model.base: {name} transforms its logits after the head, which "
            "the loss here skips; choose a base without logit soft-capping or scaling."
        )


@torch.no_grad()
def check_packing(causal_lm: Any) -> None:
    """Check that the rows of a packed sequence cannot see each other.

    Raises:
        RequestError: If a row's logits depend on the row before it.
    """
    device = next(causal_lm.parameters()).device
    one, other = torch.arange(16, device=device).view(2, 8)
    input_ids = torch.stack([torch.cat([one, one]), torch.cat([other, one])])
    is_target = torch.zeros_like(input_ids[:, 1:], dtype=torch.bool)
    is_target[:, 8:] = True

    def influence(position_ids: Tensor) -> Tensor:
        logits = target_logits(causal_lm, input_ids, position_ids.expand(2, -1), is_target)
        after_one, after_other = logits.float().chunk(2)
        return (after_one - after_other).abs().max()

    with evaluating(causal_lm):
        running = influence(torch.arange(16, device=device))
        restarting = influence(torch.arange(8, device=device).repeat(2))
    if restarting > 0.1 * running:
        raise RequestError(
            f"data.packing: in {type(causal_lm).__name__} the rows of a packed sequence see each "
            "other; set data.packing to false."
        )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into eval mode within a ``with`` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
