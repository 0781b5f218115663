"""The model: a base in 4 bits (or more) with LoRA adapters; its merged copy and its export."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.paths import resolve

Quantization = Literal["nf4", "int8", "bf16", "fp32"]
EvaluationWeights = Literal["live", "dequantized", "merged"]


@dataclass(frozen=True)
class Lora:
    """LoRA adapters, in PEFT's words.

    Args:
        r: Rank.
        lora_alpha: Scale; the update is weighed by ``lora_alpha / r``.
        lora_dropout: Dropout on the adapters' input, in [0, 1).
        target_modules: Module names, or ``all-linear`` for every linear layer but the head.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = field(default="all-linear")

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RequestError(f"model.lora.r must be 1 or more, got {self.r}.")
        if self.lora_alpha <= 0:
            raise RequestError(f"model.lora.lora_alpha must be above 0, got {self.lora_alpha}.")
        if not 0 <= self.lora_dropout < 1:
            raise RequestError(
                f"model.lora.lora_dropout must lie in [0, 1), got {self.lora_dropout}."
            )


def check_base(base: str) -> str:
    """Return where a base is loaded from, having looked that something is there.

    Raises:
        RequestError: If it is a folder without a model, or a hub name that is not in reach.
    """
    path = resolve(base)
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as fault:
        raise RequestError(
            f"model.base: no model can be loaded from {base}: {str(fault).splitlines()[0]} "
            "Name a folder in Hugging Face format, or a hub name while online."
        ) from fault
    return path


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type that a Trainer's precision computes products in, here float32 or bf16.

    >>> compute_dtype("bf16-mixed")
    torch.bfloat16
    """
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def load_base(base: str, quantization: Quantization, compute_dtype: torch.dtype) -> Any:
    """Load a causal language model for training.

    Args:
        base: A folder, ``world://base`` or a hub name.
        quantization: ``nf4`` with double quantisation, ``int8``, or unquantised ``bf16`` or
            ``fp32``.
        compute_dtype: What 4-bit weights are dequantised to for a product, and the type of the
            parts that are never quantised.

    Returns:
        The model in train mode.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": compute_dtype}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    elif quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    else:
        options["dtype"] = {"bf16": torch.bfloat16, "fp32": torch.float32}[quantization]
    if torch.cuda.is_available():
        # Quantised weights are made on the device they stay on; the Trainer finds them there.
        options["device_map"] = {"": torch.cuda.current_device()}
    model = AutoModelForCausalLM.from_pretrained(check_base(base), **options)
    for module in model.modules():
        # On CPUs with AVX512-BF16 a forward in eval mode repacks 4-bit weights, after which the
        # next backward and any merge are wrong (LoRA gradient cosine 0.67); the unpacked path is
        # right.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    model.config.use_cache = False
    return model.train()


def add_lora(model: Any, lora: Lora, seed: int) -> Any:
    """Put LoRA adapters into a frozen base.

    Args:
        model: The base; its layers are changed in place.
        lora: The adapters.
        seed: Seed of their first values.

    Raises:
        RequestError: If no module of the base has one of the names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as fault:
            raise RequestError(f"model.lora: {str(fault).splitlines()[0]}") from fault


def target_logits(
    causal_lm: Any, input_ids: Tensor, position_ids: Tensor, is_target: Tensor
) -> Tensor:
    """Compute the LM head's logits where they are needed, and nowhere else.

    Args:
        causal_lm: A transformers causal language model, adapters included.
        input_ids: int64 ``[B, T]``.
        position_ids: int64 ``[B, T]``; from where they start anew, tokens see none before.
        is_target: bool ``[B, T - 1]``, true where the *next* token carries loss.

    Returns:
        Logits ``[N, V]``, one row per true value of ``is_target``, in row-major order.
    """
    size = input_ids.shape
    if "flash" in str(causal_lm.config._attn_implementation):
        # There position ids divide a batch of one row only; in a larger one they go unnoticed.
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    # With a mask or a cache, transformers would not look at where position ids start anew.
    hidden = causal_lm.get_decoder()(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state.view(*size, -1)
    return causal_lm.get_output_embeddings()(hidden[:, :-1][is_target])


@torch.no_grad()
def check_head(causal_lm: Any) -> None:
    """Refuse an architecture that changes logits after its head: ``target_logits`` would not.

    Raises:
        RequestError: If head of decoder is not what the model's own forward gives.
    """
    device = next(causal_lm.parameters()).device
    input_ids = position_ids = torch.arange(4, device=device)[None]
    is_target = torch.ones_like(input_ids[:, 1:], dtype=torch.bool)
    with _evaluating(causal_lm):
        expected = causal_lm(input_ids=input_ids, use_cache=False).logits[0, :-1]
        ours = target_logits(causal_lm, input_ids, position_ids, is_target)
    if not torch.allclose(ours.float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise RequestError(
            f"model.base: {type(causal_lm).__name__} transforms its logits after the head, which "
            "the loss here leaves out; choose a base without logit soft-capping or scaling."
        )


@torch.no_grad()
def check_packing(causal_lm: Any) -> None:
    """Refuse an architecture in which the rows of a packed sequence see each other.

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

    with _evaluating(causal_lm):
        running = influence(torch.arange(16, device=device))
        restarting = influence(torch.arange(8, device=device).repeat(2))
    if restarting > 0.1 * running:
        raise RequestError(
            f"data.packing: in {type(causal_lm).__name__} the rows of a packed sequence see each "
            "other; set data.packing to false."
        )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def plain_causal_lm(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
        A model in eval mode on the same device.
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
    return copy.to(next(source.parameters()).device).eval()


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


def save_trained(model: Any, out: Path) -> None:
    """Write what was trained: adapters in PEFT's format, or the whole model without them."""
    model.save_pretrained(out)
