"""The sizes of a model under training, found without its weights: all tensors are shapes only."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sft_lab.errors import RequestError
from sft_lab.model.memory import ModelSize, int8_bytes, nf4_bytes
from sft_lab.model.qlora import (
    Lora,
    Quantization,
    add_lora,
    check_base,
    compute_dtype,
    plain_causal_lm,
)

_ATTENTION = "sft_lab_sizes"
_PROBES = (64, 128)  # tokens; two points of a straight line


def model_size(
    base: str, quantization: Quantization, lora: Lora | None, precision: str
) -> ModelSize:
    """Return the sizes of a model as ``fit`` would train it; found once for the same arguments.

    The architecture runs on tensors that have a shape and a type and no memory, and what autograd
    keeps is added up. Attention is taken to be one of the fused kernels, which keep queries, keys,
    values and their result, and no matrix of all pairs of tokens. Operations are a CPU's, whose
    dropout keeps four bytes where CUDA's keeps one: with ``lora_dropout`` it is a bound there.

    Args:
        base: A folder, ``world://base`` or a hub name; only its config is read.
        quantization: As for ``load_base``.
        lora: The adapters; None trains the whole base.
        precision: The Trainer's.

    Raises:
        RequestError: If there is no such base, or its architecture cannot be run by shapes.
    """
    targets = None if lora is None else lora.target_modules
    key = targets if targets is None or isinstance(targets, str) else tuple(targets)
    adapters = None if lora is None else (lora.r, lora.lora_alpha, lora.lora_dropout, key)
    return _model_size(check_base(base), quantization, adapters, precision)


@cache
def _model_size(path: str, quantization: Quantization, adapters: Any, precision: str) -> ModelSize:
    from transformers import AutoConfig, AutoModelForCausalLM

    product_dtype = compute_dtype(precision)
    unquantized = {"bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = unquantized.get(quantization, product_dtype)
    config = AutoConfig.from_pretrained(path)
    config.use_cache = False
    _count_attention()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=_ATTENTION
        )
        quantized = _quantized_layers(model) if quantization in ("nf4", "int8") else []
        base = list(model.parameters())
        plain_weights = {id(layer.weight) for layer in quantized}
        weights = sum(p.numel() * p.element_size() for p in base if id(p) not in plain_weights)
        weights += sum(b.numel() * b.element_size() for b in model.buffers())
        for layer in quantized:
            rows, columns = layer.weight.shape
            four_bits = quantization == "nf4"
            weights += nf4_bytes(rows * columns) if four_bits else int8_bytes(rows, columns)
        if adapters is not None:
            r, lora_alpha, lora_dropout, targets = adapters
            chosen = list(targets) if isinstance(targets, tuple) else targets
            model = add_lora(model, Lora(r, lora_alpha, lora_dropout, chosen), seed=0)
    true_dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    if precision in true_dtype:  # Lightning casts all that is not quantised
        model.to(true_dtype[precision])
    trained = tuple((p.numel(), p.element_size()) for p in model.parameters() if p.requires_grad)
    linear = [m for m in plain_causal_lm(model).get_decoder().modules() if _is_linear(m)]
    per_token, always = _saved(model, precision)
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    element = dtype.itemsize
    four_bit = [layer.weight.numel() for layer in quantized] if quantization == "nf4" else []
    return ModelSize(
        weights=weights,
        parameters=sum(p.numel() for p in base),
        trained=trained,
        is_adapted=adapters is not None,
        num_layers=text.num_hidden_layers,
        saved_per_token=per_token,
        saved_always=always,
        hidden_per_token=text.hidden_size * element,
        widest_per_token=max((max(m.weight.shape) for m in linear), default=0) * element,
        dequantized=sum(four_bit) * product_dtype.itemsize,
        largest_dequantized=max(four_bit, default=0) * product_dtype.itemsize,
        merged=sum(p.numel() for p in base) * product_dtype.itemsize,
        logit=element,
        vocab_size=text.vocab_size,
        kv_per_token=2 * text.num_hidden_layers * heads * head_dim * element,
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _quantized_layers(model: Any) -> list[Any]:
    """Return the layers that transformers replaces by quantised ones."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, skipped)
    ]


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values, the result, and sums of its rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("sizes are found without a backward pass.")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


def _count_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)


def _saved(model: Any, precision: str) -> tuple[float, float]:
    """Return the bytes that a forward pass keeps: for each token, and always.

    The model's parameters become shapes with a device for good.
    """
    from torch._subclasses import FakeTensorMode

    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(
                        _shape_only(parameter), requires_grad=parameter.requires_grad
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _shape_only(buffer)
        try:
            few, many = (_saved_bytes(model, tokens, precision) for tokens in _PROBES)
        except Exception as fault:  # whatever an architecture does that shapes cannot answer
            name = type(plain_causal_lm(model)).__name__
            raise RequestError(
                f"model.base: the memory of {name} cannot be told without its weights: "
                f"{str(fault).splitlines()[0][:200]}"
            ) from fault
    per_token = (many - few) / (_PROBES[1] - _PROBES[0])
    return per_token, few - per_token * _PROBES[0]


def _shape_only(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _saved_bytes(model: Any, tokens: int, precision: str) -> int:
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    input_ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=precision.endswith("mixed")),
    ):
        plain_causal_lm(model).get_decoder()(
            input_ids=input_ids, position_ids=torch.arange(tokens)[None], use_cache=False
        )
    return sum(storage.nbytes() for storage in kept.values())


@dataclass(frozen=True)
class ModelSettings:
    """What of a run's config decides the size of its model."""

    base: str
    quantization: Any
    lora: Lora | None
    gradient_checkpointing: bool
    optimizer: str
    precision: str
