"""Shard an unquantised model over the ranks of a run by FSDP2, and keep its ranks in step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from sft_lab import distributed
from sft_lab.errors import RequestError
from sft_lab.model.kernels import decoder_layers
from sft_lab.model.logits import DECODE, decoder_of
from sft_lab.model.qlora import check_base, plain_causal_lm, read_config

FSDP = "fsdp"
"""The name of ``trainer.strategy`` that shards a model."""


def check_shardable(base: str) -> None:
    """Check, without its weights, that a base can be sharded by layers and evaluated so.

    Args:
        base: A folder, ``world://base`` or a hub name; only its config is read.

    Raises:
        RequestError: If it cannot.
    """
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    config = read_config(check_base(base))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    why = None
    if len(decoder_layers(model)) != config.get_text_config().num_hidden_layers:
        why = "its layers are not found"
    cache = DynamicCache(config=config)
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        why = "its recurrent layers are probed for padding before they answer"
    if why is not None:
        raise RequestError(
            f"trainer.strategy fsdp: {type(model).__name__} is not sharded, {why}; set it to ddp."
        )


def mesh_of_ranks(device: torch.device) -> DeviceMesh:
    """Return all ranks as a mesh of their devices, by a call on each of them."""
    return init_device_mesh(device.type, (distributed.world_size(),))


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shard a model over all ranks: each layer by itself, and what lies outside of the layers.

    A layer's weights are gathered for its forward and for its backward pass only; what lies
    outside stays gathered in between. Nothing is converted to another type, and gradients are
    summed in float32, so that the arithmetic is that of the whole model. Ranks exchange nothing.

    Args:
        model: The whole model, the same on each rank, in the type to train in; changed in place.
        mesh: The ranks and the kind of their devices, on which the shards are placed.
    """
    causal_lm = plain_causal_lm(model)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in (*decoder_layers(causal_lm), causal_lm):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    decoder = decoder_of(causal_lm)
    # The loss runs the decoder alone, which gathers nothing that lies outside of its layers.
    setattr(causal_lm, DECODE, lambda **inputs: decoder(**inputs))
    register_fsdp_forward_method(causal_lm, DECODE)


def is_sharded(model: Any) -> bool:
    """Return whether a model is sharded."""
    return isinstance(plain_causal_lm(model), FSDPModule)


@contextmanager
def in_step(model: Any) -> Iterator[None]:
    """Let ranks run a sharded model a different number of times within a ``with`` block.

    In a forward pass each rank waits for the layers' shards of all others. So a rank that has left
    the block runs the model over one token for as long as another one still runs it. All ranks
    must enter the block; if the model is not sharded, nothing happens.

    Args:
        model: The model, which computes no gradients within the block.
    """
    if not is_sharded(model):
        yield
        return
    causal_lm = plain_causal_lm(model)
    causal_lm.unshard()  # what lies outside of the layers; a forward pass does not gather it again

    def announce(layer: Any, inputs: Any) -> None:
        distributed.largest(1)

    first_layer = decoder_layers(causal_lm)[0]
    hook = first_layer.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    token = torch.zeros(1, 1, dtype=torch.int64, device=causal_lm.device)
    while distributed.largest(0):
        with torch.no_grad():
            getattr(causal_lm, DECODE)(input_ids=token, position_ids=token, use_cache=False)
    causal_lm.reshard()


def whole(value: Any) -> Any:
    """Return a tensor gathered from its shards; all ranks take part, and the first one gets it.

    Returns:
        The tensor on the CPU, None on other ranks; what is not sharded as it is.
    """
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor().detach()
    return gathered.cpu() if distributed.is_first() else None


def whole_weights(model: Any) -> dict[str, Tensor] | None:
    """Return the trained weights of a sharded model by name, as ``whole`` does; None of others."""
    if not is_sharded(model):
        return None
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """Return this rank's shard of a tensor, if it belongs to a sharded parameter of its shape."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    # Each rank has the whole value, so none is sent.
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole tensors, as ``load_state_dict(strict=False)`` does, into a sharded model."""
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.copy_(sharded_like(weights[name], parameter))


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
