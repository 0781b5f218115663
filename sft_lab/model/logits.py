"""Compute logits and losses of chosen tokens only, and check that an architecture allows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sft_lab.errors import RequestError

CHUNK_LOGITS = 2**24
"""Logits held at a time by a loss in chunks: 64 MiB in float32."""
DECODE = "sft_lab_decode"
"""The method of a sharded model that runs its decoder, in place of the decoder itself."""


class HiddenStates(NamedTuple):
    """Hidden states at chosen positions, and how the model turns them into logits.

    Attributes:
        causal_lm: The transformers model that computed them.
        output: The decoder's whole output, whose type the model's head expects.
        states: ``[N, H]``, with gradient.
    """

    causal_lm: Any
    output: Any
    states: Tensor

    def logits(self) -> Tensor:
        """Return the logits at all positions, ``[N, V]``."""
        return self.head(self.states)

    def nll(self, target_ids: Tensor) -> Tensor:
        """Return the negative log-likelihood of a target at each position, float32 ``[N]``.

        With a large vocabulary, chunks of the positions are computed one after the other, so that
        ``CHUNK_LOGITS`` logits are held at a time. The gradient of a chunk is computed with it, or,
        if the head is trained, after the chunk is computed again in the backward pass. Each value
        is computed from its own position alone; a trained head's gradient is a sum in another
        order.
        """
        vocab_size = self.causal_lm.get_output_embeddings().weight.shape[0]
        size = max(1, CHUNK_LOGITS // vocab_size)
        if len(target_ids) <= size:
            return self._nll(self.states, target_ids)
        if self._has_early_gradient():
            return _NllOfChunks.apply(self.states, target_ids, size, self._nll)
        chunks = zip(self.states.split(size), target_ids.split(size), strict=True)
        return torch.cat([checkpoint(self._nll, *chunk, use_reentrant=False) for chunk in chunks])

    def _has_early_gradient(self) -> bool:
        """Return whether the states' gradient can be computed before that of the loss is known."""
        device = self.states.device.type
        dtypes = {self.states.dtype}
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
        return (
            torch.is_grad_enabled()
            and self.states.requires_grad
            and torch.float16 not in dtypes  # small gradients need the loss scale
            and not hasattr(self.causal_lm, DECODE)  # a sharded head is gathered again
            and not self._head_is_trained()
        )

    def _head_is_trained(self) -> bool:
        """Return whether logits depend on a trained weight, wherever the model holds it."""
        devices = [self.states.device] if self.states.is_cuda else []
        with torch.random.fork_rng(devices):  # adapters of a head may have dropout
            return self.head(self.states[:1].detach()).requires_grad

    def _nll(self, states: Tensor, target_ids: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(states).float(), target_ids, reduction="none")

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of some of the states.

        The model's own forward computes them, with a decoder that returns these states, so that
        scaled and capped logits are what the model makes of them.
        """
        output = copy(self.output)
        output.last_hidden_state = states[None]
        decoder = decoder_of(self.causal_lm)
        input_ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        own = vars(decoder).get("forward")
        decoder.forward = lambda *args, **kwargs: output
        try:
            logits: Tensor = self.causal_lm(input_ids=input_ids, use_cache=False).logits[0]
        finally:
            del decoder.forward
            if own is not None:
                decoder.forward = own
        return logits


class _NllOfChunks(torch.autograd.Function):
    """Compute losses, and how each depends on its own state, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        target_ids: Tensor,
        size: int,
        nll: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        losses, gradients = [], []
        for some, targets in zip(states.split(size), target_ids.split(size), strict=True):
            with torch.enable_grad():
                some = some.detach().requires_grad_()
                chunk = nll(some, targets)
                gradients += torch.autograd.grad(chunk.sum(), some)
            losses.append(chunk.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor | None, ...]:
        [of_states] = ctx.saved_tensors
        [of_loss] = of_losses
        return (of_states * of_loss[:, None]).to(of_states.dtype), None, None, None


def hidden_states(
    causal_lm: Any, input_ids: Tensor, position_ids: Tensor, places: Tensor
) -> HiddenStates:
    """Run a model's decoder.

    Args:
        causal_lm: A transformers causal language model, adapters included.
        input_ids: int64 ``[B, T]``.
        position_ids: int64 ``[B, T]``; a restart begins a new row, which cannot see earlier ones.
        places: Positions whose states are wanted, int64 ``[N]``, counted over all rows.
    """
    if "flash" in str(causal_lm.config._attn_implementation):
        # Flash attention reads position ids in a batch of one row only, and ignores them in others.
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    # With a mask or a cache, transformers would ignore where position ids restart.
    decode = getattr(causal_lm, DECODE, None) or decoder_of(causal_lm)
    output = decode(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    return HiddenStates(causal_lm, output, output.last_hidden_state.flatten(0, 1)[places])


def decoder_of(causal_lm: Any) -> Any:
    """Return the part of a causal language model that computes hidden states."""
    from transformers import PreTrainedModel

    found = causal_lm.get_decoder()
    # transformers looks for usual names, under which ModernBERT has its head, and Llama 4 nothing.
    is_decoder = isinstance(found, PreTrainedModel) and found is not causal_lm
    return found if is_decoder else causal_lm.model


def check_logits(causal_lm: Any) -> None:
    """Check that logits are finite, causal, and those that the model itself computes.

    Raises:
        RequestError: If they are not.
    """
    name = type(causal_lm).__name__
    input_ids, position_ids = _probe(causal_lm, 8)
    places = torch.arange(8, device=input_ids.device)
    with evaluating(causal_lm), watched_embeddings(causal_lm) as embeddings:
        with _runs(name):
            found = hidden_states(causal_lm, input_ids, position_ids, places).logits()
        if not found.isfinite().all():
            raise RequestError(
                f"model.base: the logits of {name} are not finite; its weights are damaged, or too "
                "large for trainer.precision."
            )
        if influence(found[:-1], embeddings)[-1:].any():
            raise RequestError(
                f"model.base: in {name} a token sees later ones, so it is not a causal language "
                "model; name one that is."
            )
        with torch.no_grad():
            own = causal_lm(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    with _runs(name), torch.random.fork_rng(), torch.no_grad():  # for dropout
        causal_lm(input_ids=input_ids, use_cache=False)
    # The operations are the same, so only kernels that round differently each time may differ.
    if not torch.allclose(found, own[0], rtol=_ROUNDING[own.dtype], atol=_ROUNDING[own.dtype]):
        raise RequestError(
            f"model.base: the logits of {name} depend on more than its decoder's output, so the "
            "loss cannot be computed at target tokens alone; name another base."
        )


def check_adapters_act(model: Any) -> None:
    """Check that adapters change what the decoder computes, as those that act on prompts do not.

    Raises:
        RequestError: If the loss depends on no trained weight.
    """
    causal_lm = model.get_base_model()
    input_ids, position_ids = _probe(causal_lm, 8)
    places = torch.arange(8, device=input_ids.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    why = "its loss depends on none of their weights"
    try:
        with evaluating(model):
            logits = hidden_states(causal_lm, input_ids, position_ids, places).logits()
            found = torch.autograd.grad(logits.float().square().sum(), trained, allow_unused=True)
    except Exception as fault:  # whatever adapters raise on layers that they do not suit
        found, why = (), str(fault).splitlines()[0][:200].rstrip(".")
    if all(gradient is None for gradient in found):
        raise RequestError(
            f"model.peft: {type(causal_lm).__name__} cannot be trained with these adapters: {why}; "
            "set model.quantization to bf16 or fp32, or name others, such as peft.LoraConfig."
        )


@contextmanager
def _runs(name: str) -> Iterator[None]:
    """Refuse a model whose forward pass fails, as some do in a quantisation or data type."""
    try:
        yield
    except Exception as fault:
        raise RequestError(
            f"model.base: {name} computes no logits as it was loaded: "
            f"{str(fault).splitlines()[0][:200]}. Set model.quantization to bf16 or fp32, or "
            "name another base."
        ) from fault


_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float64: 1e-4}


def check_packing(causal_lm: Any, key: str = "data.packing") -> None:
    """Check that the rows of a packed sequence cannot see each other.

    Args:
        causal_lm: A transformers causal language model.
        key: The config's key that asks for packed sequences.

    Raises:
        RequestError: If a row's logits depend on the row before it.
    """
    input_ids, position_ids = _probe(causal_lm, 16)
    places = torch.arange(8, 16, device=input_ids.device)
    with evaluating(causal_lm), watched_embeddings(causal_lm) as embeddings:
        logits = hidden_states(causal_lm, input_ids, position_ids % 8, places).logits()
        leaks = influence(logits, embeddings)[:8].any()
    if leaks:
        raise RequestError(
            f"{key}: in {type(causal_lm).__name__} the rows of a packed sequence see each other; "
            f"set {key} to false."
        )


def _probe(causal_lm: Any, length: int) -> tuple[Tensor, Tensor]:
    """Return token ids and positions of one row, both ``[1, T]``."""
    positions = torch.arange(length, device=next(causal_lm.parameters()).device)[None]
    # No padding token among them: its embedding is zero, where norms have no gradient.
    ids = positions + causal_lm.config.get_text_config().vocab_size // 2
    return ids, positions


@contextmanager
def watched_embeddings(causal_lm: Any) -> Iterator[list[Tensor]]:
    """Collect the embeddings of a forward pass, so that gradients with respect to them exist."""
    found: list[Tensor] = []

    def watch(module: Any, inputs: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return found[-1].clone()  # some scale it in place

    hook = causal_lm.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            yield found
    finally:
        hook.remove()


def influence(logits: Tensor, embeddings: list[Tensor]) -> Tensor:
    """Return the gradient of logits with respect to each token's embedding, ``[T, H]``.

    It is exactly zero for a token that they do not depend on, in every data type.
    """
    [gradient] = torch.autograd.grad(logits.float().square().sum(), embeddings[0])
    return gradient[0]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into eval mode within a ``with`` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
