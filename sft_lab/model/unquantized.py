"""Provide dequantised or merged weights, to generate with or for all steps of a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.model.merged import dequantized_weight, merged_copy
from sft_lab.model.qlora import plain_causal_lm
from sft_lab.model.sharding import is_sharded

EvaluationWeights = Literal["live", "dequantized", "merged"]


class _DequantizedLinear(torch.nn.Module):
    """Compute a 4-bit layer with its weight dequantised once instead of for every product.

    Args:
        layer: A ``Linear4bit`` of bitsandbytes.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = dequantized_weight(layer)
        # A non-persistent buffer: neither optimizers nor checkpoints may include it.
        self.weight: Tensor
        self.register_buffer("weight", weight.to(layer.compute_dtype or weight.dtype), False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), self.weight, bias).to(x.dtype)


class _KeptLinear:
    """Compute a 4-bit layer with its weight dequantised when first needed on a device.

    Args:
        layer: A ``Linear4bit`` of bitsandbytes, which does not own the result: no checkpoint
            holds it, and DDP does not send it.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.linear: _DequantizedLinear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.linear is None or self.linear.weight.device != x.device:
            self.linear = _DequantizedLinear(self.layer)
        return self.linear.forward(x)


def keep_dequantized(model: Any) -> None:
    """Compute the 4-bit layers of a model with weights that are dequantised once, for all steps.

    Everything else, such as merging and saving, still reads the 4-bit weights.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.forward = _KeptLinear(layer)  # type: ignore[method-assign]


class _DequantizedLora(torch.nn.Module):
    """Compute a 4-bit layer with an adapter in two products.

    One product computes both the base and the adapter's A, another adds B: the sums equal those of
    PEFT's layer, in a quarter of its operations.

    Args:
        layer: PEFT's ``Linear4bit`` with one plain adapter, all of one type.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        [adapter] = layer.active_adapters
        base = _DequantizedLinear(layer.get_base_layer())
        self.num_features = len(base.weight)
        self.scaling: float = layer.scaling[adapter]
        down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        self.weight: Tensor
        self.up: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", torch.cat([base.weight, down]), False)
        self.register_buffer("up", up.T, False)
        bias = None
        if base.bias is not None:
            bias = torch.cat([base.bias.detach().to(down.dtype), down.new_zeros(len(down))])
        self.register_buffer("bias", bias, False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.nn.functional.linear(x, self.weight, self.bias).flatten(0, -2)
        result, inner = both[:, : self.num_features], both[:, self.num_features :]
        result = torch.addmm(result, inner, self.up, alpha=self.scaling)
        return result.view(*x.shape[:-1], self.num_features)


def _is_plain_lora(layer: Any) -> bool:
    """Return whether ``_DequantizedLora`` can replace a module."""
    from peft.tuners.lora import Linear4bit

    if not isinstance(layer, Linear4bit) or len(layer.active_adapters) != 1:
        return False
    [adapter] = layer.active_adapters
    return (
        adapter in layer.lora_A
        and not (layer.merged or layer.disable_adapters or layer.lora_bias[adapter])
        and adapter not in layer.lora_variant
        # Under autocast, or with adapters of higher precision, PEFT rounds in between.
        and layer.lora_A[adapter].weight.dtype == layer.get_base_layer().compute_dtype
        and not torch.is_autocast_enabled(layer.lora_A[adapter].weight.device.type)
    )


@contextmanager
def dequantized(model: Any) -> Iterator[Any]:
    """Replace the 4-bit layers by dequantised ones within a ``with`` block.

    Adapters stay separate, so the arithmetic is that of the live model, without dequantising for
    every product. 8-bit layers stay, because they round activations too. Nothing can be trained
    within the block; after it, the layers are the same objects as before.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_adapters`` return it.
    """
    from bitsandbytes.nn import Linear4bit

    layers: list[tuple[Any, str, Any]] = []

    def find(parent: Any) -> None:
        for name, layer in parent.named_children():
            if isinstance(layer, Linear4bit) or _is_plain_lora(layer):
                layers.append((parent, name, layer))
            else:
                find(layer)

    find(model)
    try:
        for parent, name, layer in layers:
            substitute = _DequantizedLora if _is_plain_lora(layer) else _DequantizedLinear
            setattr(parent, name, substitute(layer).train(layer.training))
        yield model
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


@contextmanager
def evaluation_weights(
    model: Any, weights: EvaluationWeights, compute_dtype: torch.dtype
) -> Iterator[Any]:
    """Yield the model to generate with, and free a copy's memory afterwards.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_adapters`` return it.
        weights: ``live``, the model itself; ``dequantized``, the model with dequantised layers; or
            ``merged``, a ``merged_copy``.
        compute_dtype: Type of a merged copy.
    """
    if is_sharded(model):
        model = plain_causal_lm(model)  # PEFT's wrapper bypasses what gathers its weights
    if weights == "merged":
        yield merged_copy(model, compute_dtype)
    elif weights == "dequantized":
        with dequantized(model):
            yield model
    else:
        yield model
