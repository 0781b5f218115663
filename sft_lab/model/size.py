"""Measure the sizes of a model under training without its weights, on fake tensors."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Adapters, Peft, add_adapters
from sft_lab.model.kernels import decoder_layers
from sft_lab.model.logits import decoder_of
from sft_lab.model.memory import ModelSize, int8_bytes, nf4_bytes
from sft_lab.model.qlora import Quantization, check_base, compute_dtype, read_config

_ATTENTION = "sft_lab_sizes"
_PROBES = (64, 128)  # tokens; saved bytes are linear in them


def model_size(
    base: str, quantization: Quantization, adapters: Adapters | None, precision: str
) -> ModelSize:
    """Return the sizes of a model as ``fit`` would train it, cached by arguments.

    The architecture runs on fake tensors, which have shape and dtype but no memory, and the tensors
    that autograd saves are summed. Attention is assumed to be a fused kernel, which saves queries,
    keys, values and their result, but no matrix of all pairs of tokens. Operations are those of a
    CPU, whose dropout saves four bytes and CUDA's one: with ``lora_dropout``, an upper bound.

    Args:
        base: A folder, ``world://base`` or a hub name; only its config is read.
        quantization: As for ``load_base``.
        adapters: The adapters; None trains the whole base.
        precision: Precision of the Trainer.

    Raises:
        RequestError: If the base is unknown, or its architecture cannot run on fake tensors.
    """
    return _model_size(check_base(base), quantization, adapters, precision)


@cache
def _model_size(
    path: str, quantization: Quantization, adapters: Adapters | None, precision: str
) -> ModelSize:
    from torch._subclasses import FakeTensorMode
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    AttentionInterface.register(_ATTENTION, _attention)
    product_dtype = compute_dtype(precision)
    unquantized = {"bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = unquantized.get(quantization, product_dtype)
    config = read_config(path)
    config.use_cache = False
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=_ATTENTION
        )
        decoder = decoder_of(model)
        quantized = quantized_layers(model) if quantization in ("nf4", "int8") else []
        base = list(model.parameters())
        plain_weights = {id(layer.weight) for layer in quantized}
        weights = sum(p.numel() * p.element_size() for p in base if id(p) not in plain_weights)
        weights += sum(b.numel() * b.element_size() for b in model.buffers())
        for layer in quantized:
            numel = layer.weight.numel()
            outputs = layer.nf if isinstance(layer, Conv1D) else layer.out_features
            four_bits = quantization == "nf4"
            weights += nf4_bytes(numel) if four_bits else int8_bytes(outputs, numel // outputs)
        if adapters is not None:
            model = add_adapters(model, adapters, seed=0)
        true_dtype = {
            "bf16-true": torch.bfloat16,
            "16-true": torch.float16,
            "64-true": torch.float64,
        }
        if precision in true_dtype:  # Lightning casts all that is not quantised
            model.to(true_dtype[precision])
    trained = tuple((p.numel(), p.element_size()) for p in model.parameters() if p.requires_grad)
    gathered = _gathered_bytes(model)
    _unshare(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            model.to_empty(device="cpu")  # fake, so that autocast applies, which meta tensors lack
            few, many = (_saved_bytes(decoder, tokens, precision) for tokens in _PROBES)
        except Exception as fault:  # any operation of an architecture that needs values
            raise RequestError(
                f"model.base: the memory of {type(model).__name__} is unknown without its "
                f"weights: {str(fault).splitlines()[0][:200]}"
            ) from fault
    saved_per_token = (many - few) / (_PROBES[1] - _PROBES[0])
    widths = [max(m.weight.shape) for m in decoder.modules() if isinstance(m, nn.Linear | Conv1D)]
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    element = dtype.itemsize
    four_bit = [layer.weight.numel() for layer in quantized] if quantization == "nf4" else []
    parameters = sum(p.numel() for p in base)
    return ModelSize(
        weights=weights,
        parameters=parameters,
        trained=trained,
        is_adapted=adapters is not None,
        num_layers=text.num_hidden_layers,
        saved_per_token=saved_per_token,
        saved_always=few - saved_per_token * _PROBES[0],
        hidden_per_token=text.hidden_size * element,
        widest_per_token=max(widths, default=0) * element,
        dequantized=sum(four_bit) * product_dtype.itemsize,
        largest_dequantized=max(four_bit, default=0) * product_dtype.itemsize,
        merged=parameters * product_dtype.itemsize,
        logit=element,
        vocab_size=text.vocab_size,
        kv_per_token=2 * text.num_hidden_layers * heads * head_dim * element,
        gathered=gathered,
    )


def _gathered_bytes(model: Any) -> int:
    """Return what a device holds whole, for a time, of a model that FSDP2 has sharded.

    That is what lies outside of the layers, one layer and the next one on its way; where they are
    trained, gradients outside and of a layer, and a layer's gradients in float32 to be summed.
    """
    layers = [list(layer.parameters()) for layer in decoder_layers(model)]
    inside = {id(parameter) for layer in layers for parameter in layer}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]

    def size(parameters: list[Tensor], element: int | None = None) -> int:
        return sum(p.numel() * (element or p.element_size()) for p in parameters)

    def trained(parameters: list[Tensor]) -> list[Tensor]:
        return [parameter for parameter in parameters if parameter.requires_grad]

    per_layer = [
        2 * size(layer) + size(trained(layer)) + size(trained(layer), element=4) for layer in layers
    ]
    return size(outside) + size(trained(outside)) + max(per_layer, default=0)


def _unshare(model: Any) -> None:
    """Copy modules with several owners, as tied adapters have: torch cannot make them fake."""
    seen: set[int] = set()
    for owner in list(model.modules()):
        for name, module in owner.named_children():
            if id(module) in seen:
                setattr(owner, name, deepcopy(module))
            seen.add(id(module))


def quantized_layers(model: Any) -> list[Any]:
    """Return the layers that transformers would replace by quantised ones."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [
        module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(name, skipped)
    ]


class _FusedAttention(torch.autograd.Function):
    """Save what fused attention saves: queries, keys, values, the result, and sums of its rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("sizes are measured without a backward pass.")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


def _saved_bytes(decoder: Any, tokens: int, precision: str) -> int:
    """Return the bytes that a forward pass saves for the backward pass."""
    own = {p.untyped_storage()._cdata for p in decoder.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not reused
        return tensor

    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    input_ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=precision.endswith("mixed")),
    ):
        positions = torch.arange(tokens)[None]
        decoder.train()(input_ids=input_ids, position_ids=positions, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@dataclass(frozen=True)
class ModelSettings:
    """Hold the settings of a run that decide the size of its model."""

    base: str
    quantization: Any
    adapters: Adapters | None
    gradient_checkpointing: bool
    dequantize: str
    fused_lora: bool
    optimizer: str
    precision: str
    sharded: bool = False

    @property
    def is_shardable(self) -> bool:
        """Return whether FSDP takes quantisation, adapters and optimizer."""
        is_plain = self.quantization in ("bf16", "fp32") and self.optimizer == "adamw"
        return is_plain and not isinstance(self.adapters, Peft)
