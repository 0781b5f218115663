"""Compute plain LoRA adapters in one function, with a backward pass of its own."""

from functools import partial
from typing import Any

import torch
from torch import Tensor


class _AddLora(torch.autograd.Function):
    """Add ``scaling * x A^T B^T`` to a base layer's result, in two products.

    PEFT's operations also copy the result, multiply it by the scaling, and add, and again in the
    backward pass; under autocast they convert in between.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, result: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        inner = (rows @ a.T).mul_(scaling)
        ctx.save_for_backward(rows, inner, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        sums = result.flatten(0, -2)
        # Where the base has rounded less than the adapters, so does the sum.
        added = torch.addmm(sums, inner, b.T) if sums.dtype == inner.dtype else sums + inner @ b.T
        return added.to(result.dtype).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        rows, inner, a, b = ctx.saved_tensors
        outer = gradient.flatten(0, -2).to(inner.dtype)
        needs_x, _, needs_a, needs_b, _ = ctx.needs_input_grad
        through = (outer @ b).mul_(ctx.scaling)
        return (
            (through @ a).view(ctx.shape) if needs_x else None,
            gradient,
            through.T @ rows if needs_a else None,
            outer.T @ inner if needs_b else None,
            None,
        )


def fuse_lora(model: Any) -> None:
    """Have the LoRA layers of a PEFT model computed by one function each, where they are plain.

    Others stay PEFT's own: DoRA and other variants, with dropout in training, with a bias, adapters
    that are off or merged, and layers that are not linear.
    """
    from peft.tuners import lora

    plain = (lora.Linear, lora.Linear4bit, lora.Linear8bitLt)
    for layer in model.modules():
        if type(layer) in plain:
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    adapters = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or not _is_plain(layer, adapters):
        result: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return result
    result = layer.base_layer(x)
    device = x.device.type
    for name in adapters:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else a.dtype
        with torch.autocast(device, enabled=False):
            values = (x.to(dtype), result, a.to(dtype), b.to(dtype), layer.scaling[name])
            result = _AddLora.apply(*values)
    return result


def _is_plain(layer: Any, adapters: list[str]) -> bool:
    if layer.disable_adapters or layer.merged:
        return False
    return not any(
        name in layer.lora_variant
        or layer.lora_bias[name]
        or (layer.training and getattr(layer.lora_dropout[name], "p", 0))
        for name in adapters
    )
