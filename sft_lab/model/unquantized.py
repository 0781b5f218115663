"""Provide the weights that an evaluation generates with: live, dequantised or merged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.model.logits import evaluating
from sft_lab.model.qlora import plain_causal_lm

# Of a merged copy's logits from the live ones, by norm. Measured on seven architectures: at most
# 1e-6 in float32, and 0.03 where bfloat16 or 8 bits round.
_MAX_DIFFERENCE, _MAX_ROUNDING = 0.01, 0.15
EvaluationWeights = Literal["live", "dequantized", "merged"]


def _weights(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the merged model with its name in the plain model."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    adapted: dict[str, Any] = {}
    for name, module in plain_causal_lm(model).named_modules():
        is_part = name.endswith(".base_layer")  # one of two adapted parameters of a module
        if isinstance(module, LoraLayer) and not is_part:
            adapted[name] = module
    for name, module in adapted.items():
        base_layer = module.get_base_layer()
        if isinstance(module, ParamWrapper):  # experts, or a router, as parameters of their own
            values = {key: value.detach() for key, value in base_layer.named_parameters()}
            while isinstance(module, ParamWrapper):
                delta = sum(
                    module.get_delta_weight(each).float() for each in module.active_adapters
                )
                values[module.parameter_name] = values[module.parameter_name].float() + delta
                module = module.base_layer
            yield from ((f"{name}.{key}", value.to(dtype)) for key, value in values.items())
            continue
        weight = _dequantized(base_layer).float()
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter).float()
        yield f"{name}.weight", weight.to(dtype)
        if getattr(base_layer, "bias", None) is not None:  # an embedding has none
            yield f"{name}.bias", base_layer.bias.detach().to(dtype)
    inside = tuple(f"{name}." for name in adapted)
    for name, module in plain_causal_lm(model).named_modules():
        if f"{name}.".startswith(inside) and inside:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            value = _dequantized(module) if key == "weight" else parameter.detach()
            yield f"{name}.{key}", value.to(dtype)


def _dequantized(layer: Any) -> Tensor:
    """Return a layer's weight unquantised; the layer stays unchanged.

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
    """Return a plain, unquantised copy with the adapters merged in; the model stays unchanged.

    The adapters were trained on the quantised base, so they are merged into that base,
    dequantised: the copy has the logits of the live model.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_lora`` return it.
        dtype: Type of the copy's weights.

    Returns:
        A model in eval mode on the same device, without trainable parameters.

    Raises:
        RequestError: If the copy has other logits.
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
    weights = dict(_weights(model, dtype))
    for name in _transposed(source, copy):
        weights[name] = weights[name].T.contiguous()
    copy.load_state_dict(weights, strict=False, assign=True)
    copy.tie_weights()
    missing = [name for name, parameter in copy.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(
            f"{type(source).__name__} cannot be merged: no weight for {', '.join(missing[:3])}."
        )
    copy.generation_config = source.generation_config
    copy = copy.to(next(source.parameters()).device).requires_grad_(False).eval()
    _check_merged(model, copy)
    return copy


def _transposed(source: Any, copy: Any) -> list[str]:
    """Return the names of weights that a quantised layer holds transposed.

    GPT-2's ``Conv1D`` holds its weight as [in, out], the quantised layer in its place as [out, in].
    """
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    modules = dict(source.named_modules())
    found = []
    for name, module in copy.named_modules():
        if isinstance(module, Conv1D):
            layer = modules[name]
            layer = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
            if not isinstance(layer, Conv1D):
                found.append(f"{name}.weight")
    return found


def _check_merged(model: Any, copy: Any) -> None:
    """Check on a few tokens that a merged copy has the logits of its model.

    Raises:
        RequestError: If they differ by more than rounding.
    """
    from bitsandbytes.nn import Int8Params

    device = next(copy.parameters()).device
    vocab_size = copy.get_input_embeddings().num_embeddings
    input_ids = (torch.arange(16, device=device) * 7919 % vocab_size)[None]
    with evaluating(model):
        live = model(input_ids=input_ids, use_cache=False).logits
    merged = copy(input_ids=input_ids, use_cache=False).logits
    in_8_bits = any(isinstance(parameter, Int8Params) for parameter in model.parameters())
    rounds = in_8_bits or {live.dtype, merged.dtype} != {torch.float32}
    live, merged = live.float(), merged.float()
    difference = ((merged - live).norm() / (live - live.mean()).norm()).item()
    if not difference <= (_MAX_ROUNDING if rounds else _MAX_DIFFERENCE):
        raise RequestError(
            f"model.base: {type(copy).__name__} has other logits with its adapters merged than "
            f"with them apart (by {difference:.2g} of their spread); set evaluation.weights to "
            "live, and export --what adapter."
        )


class _DequantizedLinear(torch.nn.Module):
    """Compute a 4-bit layer with its weight dequantised once instead of for every product.

    Args:
        layer: A ``Linear4bit`` of bitsandbytes.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = _dequantized(layer)
        # A non-persistent buffer: neither optimizers nor checkpoints may include it.
        self.weight: Tensor
        self.register_buffer("weight", weight.to(layer.compute_dtype or weight.dtype), False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), self.weight, bias).to(x.dtype)


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
        model: A (PEFT) model as ``load_base`` and ``add_lora`` return it.
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
        model: A (PEFT) model as ``load_base`` and ``add_lora`` return it.
        weights: ``live``, the model itself; ``dequantized``, the model with dequantised layers; or
            ``merged``, a ``merged_copy``.
        compute_dtype: Type of a merged copy.
    """
    if weights == "merged":
        yield merged_copy(model, compute_dtype)
    elif weights == "dequantized":
        with dequantized(model):
            yield model
    else:
        yield model
