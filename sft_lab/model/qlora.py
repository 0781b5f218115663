"""Load a base in 4 bits (or more), add LoRA adapters, and save the trained weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.model.adapters import frozen_adapters, has_adapters, save_joined
from sft_lab.paths import resolve

Quantization = Literal["nf4", "int8", "bf16", "fp32"]


@dataclass(frozen=True)
class Lora:
    """Configure LoRA adapters, with PEFT's names.

    Args:
        r: Rank.
        lora_alpha: Scale; the update is multiplied by ``lora_alpha / r``.
        lora_dropout: Dropout on the adapters' input, in [0, 1).
        target_modules: Module names, or ``all-linear`` for every linear layer but the head.
    """

    r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    target_modules: str | list[str] = field(default="all-linear")


def check_base(base: str) -> str:
    """Check that a base exists, and return the path or hub name to load it from.

    Raises:
        RequestError: If it is a folder without a model, or an unreachable hub name.
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
    """Return the dtype of matrix products under a Trainer's precision: float32 or bf16.

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
        compute_dtype: Type that 4-bit weights are dequantised to for a product, and of the parts
            that are never quantised.

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
        # Quantised weights are created on their final device; the Trainer leaves them there.
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
    """Add LoRA adapters to a base, and freeze the base.

    Args:
        model: The base; its layers are changed in place.
        lora: The adapters.
        seed: Seed of their initial values.

    Raises:
        RequestError: If no module of the base matches ``target_modules``.
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


def plain_causal_lm(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def save_trained(model: Any, out: Path) -> None:
    """Save the adapters in PEFT's format, or the whole model if it has none.

    Several adapters become one that equals all of them together.
    """
    if has_adapters(model) and frozen_adapters(model):
        save_joined(model, out)
    else:
        model.save_pretrained(out)
