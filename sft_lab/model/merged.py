"""Merge adapters into an unquantised copy of a model."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.model.adapters import TRAINED, has_adapters
from sft_lab.model.logits import evaluating
from sft_lab.model.qlora import plain_causal_lm

# Of a merged copy's logits from the live ones, by norm. Measured on seven architectures: at most
# 1e-6 in float32, and 0.03 where bfloat16 or 8 bits round.
_MAX_DIFFERENCE, _MAX_ROUNDING = 0.01, 0.15
# What PEFT puts between a module's name in the base and its weight.
_WRAPPED = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_PREFIX = "base_model.model."


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
        weight = dequantized_weight(base_layer).float()
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
            value = dequantized_weight(module) if key == "weight" else parameter.detach()
            yield f"{name}.{key}", value.to(dtype)


def dequantized_weight(layer: Any) -> Tensor:
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

    Adapters other than plain LoRA are merged by PEFT itself, in that type.

    Args:
        model: A (PEFT) model as ``load_base`` and ``add_adapters`` return it.
        dtype: Type of the copy's weights.

    Returns:
        A model in eval mode on the same device, without trainable parameters.

    Raises:
        RequestError: If the copy has other logits.
    """
    from accelerate import init_empty_weights
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    source = plain_causal_lm(model)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    config.use_cache = True
    plain = not has_adapters(model) or _is_plain(model)
    ends = (source.get_input_embeddings(), source.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        config.tie_word_embeddings = False  # the adapter of one use must not change the other
    with init_empty_weights(include_buffers=False):
        copy = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = dict(_weights(model, dtype) if plain else _base_weights(model, copy, dtype))
    for name in _transposed(source, copy):
        weights[name] = weights[name].T.contiguous()
    copy.load_state_dict(weights, strict=False, assign=True)
    copy.tie_weights()
    missing = [name for name, parameter in copy.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(
            f"{type(source).__name__} cannot be merged: no weight for {', '.join(missing[:3])}."
        )
    if not plain:
        copy = _merged_by_peft(model, copy)
    copy.generation_config = source.generation_config
    copy = copy.to(next(source.parameters()).device).requires_grad_(False).eval()
    _check_merged(model, copy)
    return copy


def _is_plain(model: Any) -> bool:
    """Return whether a model's adapters are LoRA that adds a product to a weight, and no more."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in plain_causal_lm(model).modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return False
        if isinstance(module, BaseTunerLayer) and (
            not isinstance(module, LoraLayer)
            or module.lora_variant
            or any(module.lora_bias.values())
        ):
            return False
    return True


def _base_weights(model: Any, copy: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the base, without adapters, with its name in the plain ``copy``."""
    wanted = dict(copy.named_parameters(remove_duplicate=False))
    for name, module in plain_causal_lm(model).named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full = _WRAPPED.sub("", f"{name}.{key}")
            if full in wanted:
                value = dequantized_weight(module) if key == "weight" else parameter.detach()
                yield full, value.to(dtype, copy=True)


def _merged_by_peft(model: Any, copy: Any) -> Any:
    """Add a model's adapters to the plain, unquantised copy of its base, and merge them there.

    Raises:
        RequestError: If PEFT cannot merge adapters of their kind.
    """
    from peft import get_peft_model

    names = {name for name, _ in copy.named_parameters(remove_duplicate=False)}

    def is_base(name: str) -> bool:
        return _WRAPPED.sub("", name.removeprefix(_PREFIX)) in names

    config = deepcopy(model.peft_config[TRAINED])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # what others split off the base has been split off
    with torch.random.fork_rng():  # PEFT draws initial values, which are replaced
        adapted: Any = get_peft_model(copy, config)
    # Quantised weights have other shapes than the copy's.
    own = {name: value for name, value in model.state_dict().items() if not is_base(name)}
    adapted.load_state_dict(own, strict=False)
    try:
        return adapted.merge_and_unload()
    except Exception as fault:
        raise RequestError(
            f"model.peft: {type(config).__name__} cannot be merged: {str(fault).splitlines()[0]}; "
            "set evaluation.weights to live, and export --what adapter."
        ) from fault


def _transposed(source: Any, copy: Any) -> list[str]:
    """Return the names of weights that a quantised layer holds transposed.

    GPT-2's ``Conv1D`` holds its weight as [in, out], the quantised layer in its place as [out, in].
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    modules = dict(source.named_modules())
    found = []
    for name, module in copy.named_modules():
        if isinstance(module, Conv1D):
            layer = modules[name]
            layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
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
    vocab_size = copy.config.get_text_config().vocab_size
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
