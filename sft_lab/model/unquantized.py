"""The model that generates in an evaluation: as it is trained, or without its quantisation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.model.qlora import plain_causal_lm

EvaluationWeights = Literal["live", "dequantized", "merged"]


def _weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the merged model by their names in the plain one."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {
        name: m for name, m in plain_causal_lm(model).named_modules() if isinstance(m, LoraLayer)
    }
    for name, module in adapted.items():
        base_layer = module.get_base_layer()
        weight = _dequantized(base_layer).float()
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter).float()
        yield f"{name}.weight", weight.to(dtype)
        if base_layer.bias is not None:
            yield f"{name}.bias", base_layer.bias.detach().to(dtype)
    inside = tuple(f"{name}." for name in adapted)
    for name, module in plain_causal_lm(model).named_modules():
        if f"{name}.".startswith(inside) and inside:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            value = _dequantized(module) if key == "weight" else parameter.detach()
            yield f"{name}.{key}", value.to(dtype)


def _dequantized(layer: Any) -> Tensor:
    """Return a layer's weight unquantised, and leave the layer as it is.

    PEFT's own helper replaces an 8-bit layer's weight on a CPU, whose next forward then fails.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import Int8Params, Params4bit

    weight = layer.weight.detach()
    if isinstance(layer.weight, Params4bit):
        unpacked: Tensor = functional.dequantize_4bit(weight.data, layer.weight.quant_state)
        return unpacked
    if isinstance(layer.weight, Int8Params):
        # The first forward moves the scales from the weight to the layer's state.
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return functional.int8_vectorwise_dequant(weight.data, scales)
    return weight


@torch.no_grad()
def merged_copy(model: Any, dtype: torch.dtype) -> Any:
    """Return a plain, unquantised copy with the adapters merged in; the model stays as it is.

    The adapters were trained beside the quantised base, so it is that base, dequantised, that they
    are added to: the copy's logits are the live model's.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_lora`` make it.
        dtype: Type of the copy's weights.

    Returns:
        A model in eval mode on the same device, of which nothing is trained.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    source = plain_causal_lm(model)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    config.use_cache = True
    with init_empty_weights(include_buffers=False):
        copy = AutoModelForCausalLM.from_config(config, dtype=dtype)
    copy.load_state_dict(dict(_weights(model, dtype)), strict=False, assign=True)
    copy.tie_weights()
    missing = [name for name, parameter in copy.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(
            f"{type(source).__name__} cannot be merged: no weight for {', '.join(missing[:3])}."
        )
    copy.generation_config = source.generation_config
    return copy.to(next(source.parameters()).device).requires_grad_(False).eval()


class _DequantizedLinear(torch.nn.Module):
    """What a 4-bit layer computes, with its weight dequantised once, not for every product.

    Args:
        layer: A ``Linear4bit`` of bitsandbytes.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = _dequantized(layer)
        # A buffer, and not a kept one: optimizers and checkpoints must not come to know it.
        self.weight: Tensor
        self.register_buffer("weight", weight.to(layer.compute_dtype or weight.dtype), False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), self.weight, bias).to(x.dtype)


class _DequantizedLora(torch.nn.Module):
    """What a 4-bit layer with an adapter computes, in two products.

    The adapter's A is a part of the base's product, and its B is added to that: the sums are those
    of PEFT's layer, in a quarter of its operations.

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
    """Say whether a module is what ``_DequantizedLora`` can stand for."""
    from peft.tuners.lora import Linear4bit

    if not isinstance(layer, Linear4bit) or len(layer.active_adapters) != 1:
        return False
    [adapter] = layer.active_adapters
    return (
        adapter in layer.lora_A
        and not (layer.merged or layer.disable_adapters or layer.lora_bias[adapter])
        and adapter not in layer.lora_variant
        # Under autocast, or with adapters of a finer type, PEFT rounds in between.
        and layer.lora_A[adapter].weight.dtype == layer.get_base_layer().compute_dtype
        and not torch.is_autocast_enabled(layer.lora_A[adapter].weight.device.type)
    )


@contextmanager
def dequantized(model: Any) -> Iterator[Any]:
    """Keep the 4-bit layers dequantised for a while, each in place of its layer.

    Adapters stay beside them, so that the arithmetic is that of the live model, without what
    dequantising costs in every product. 8-bit layers stay: they round activations, too. Nothing
    can be trained meanwhile, and afterwards the layers are the same objects as before.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_lora`` make it.
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
    """Yield the model to generate with; afterwards the memory of a copy is free again.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_lora`` make it.
        weights: The model itself; itself with ``dequantized`` layers; or a ``merged_copy``.
        compute_dtype: Type of a merged copy.
    """
    if weights == "merged":
        yield merged_copy(model, compute_dtype)
    elif weights == "dequantized":
        with dequantized(model):
            yield model
    else:
        yield model
