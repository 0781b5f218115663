"""Load a base in 4 bits (or more), and save the trained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lab.errors import RequestError
from sft_lab.hub import commit_of
from sft_lab.model.adapters import frozen_adapters, has_adapters, save_joined
from sft_lab.model.late_compile import import_bitsandbytes
from sft_lab.paths import is_hub_name, resolve, unpinned

Quantization = Literal["nf4", "int8", "bf16", "fp32"]


def check_base(base: str) -> str:
    """Check that a base can be trained, and return the path or hub name to load it from.

    Raises:
        RequestError: If there is none, or it is not a plain, unquantised causal language model.
    """
    path = resolve(base)
    config = read_config(path)
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise RequestError(
            f"model.base: {base} is a {config.model_type} model, for which transformers has no "
            "causal language model; name one that has."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise RequestError(
            f"model.base: {base} holds quantised weights; name the base that they were made from, "
            "which model.quantization quantises as it is loaded."
        )
    if (Path(path) / "adapter_config.json").exists():
        raise RequestError(
            f"model.base: {base} holds an adapter besides its model, which transformers would load "
            "as well; merge it, or move its adapter_config.json away."
        )
    return path


def check_quantization(config: Any, quantization: Quantization) -> None:
    """Refuse 4 bits for a model that divides its weights whenever it evaluates, and rounds them.

    Raises:
        RequestError: If it does, as RWKV.
    """
    if quantization == "nf4" and getattr(config, "rescale_every", None):
        raise RequestError(
            f"model.quantization: {config.model_type} rescales its weights for every evaluation, "
            "which rounds 4-bit ones each time, got nf4; set it to bf16 or fp32."
        )


def read_config(path: str) -> Any:
    """Return the config of a base without running code that comes with it.

    Raises:
        RequestError: If it cannot be read.
    """
    from transformers import AutoConfig

    name, revision = unpinned(path)
    if is_hub_name(name):
        commit_of("model.base", name, "model", revision)
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    except Exception as fault:  # whatever the checks of an architecture raise
        raise RequestError(
            f"model.base: no model can be loaded from {path}: {_first_sentence(fault)}. "
            "Name a folder in Hugging Face format, or a hub name while online."
        ) from fault


def _first_sentence(fault: BaseException) -> str:
    """Return the beginning of a library's message, which may take many lines."""
    words = " ".join(str(fault).split()) or type(fault).__name__
    return words.partition(". ")[0][:300].rstrip(".")


def check_weights(base: str) -> None:
    """Check that the folder of a base holds weights; those of a hub name are found at loading.

    Raises:
        RequestError: If it holds none.
    """
    folder = Path(resolve(base))
    if folder.is_dir() and not any(
        file.suffix in (".safetensors", ".bin") for file in folder.iterdir()
    ):
        raise RequestError(
            f"model.base: {base} holds no weights (model.safetensors); download them, or name "
            "another folder."
        )


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of matrix products under a Trainer's precision: float32 or bf16.

    >>> compute_dtype("bf16-mixed")
    torch.bfloat16
    """
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32


def load_base(
    base: str,
    quantization: Quantization,
    compute_dtype: torch.dtype,
    attn_implementation: str | None = None,
    *,
    on_cpu: bool = False,
) -> Any:
    """Load a causal language model for training.

    Args:
        base: A folder, ``world://base`` or a hub name, which may be ``pinned``.
        quantization: ``nf4`` with double quantisation, ``int8``, or unquantised ``bf16`` or
            ``fp32``.
        compute_dtype: Type that 4-bit weights are dequantised to for a product, and of the parts
            that are never quantised.
        attn_implementation: transformers' name of it; None for its default.
        on_cpu: Load it on the CPU in any case, from where it is sharded.

    Returns:
        The model in train mode.

    Raises:
        RequestError: If weights are missing or cannot be read.
    """
    import_bitsandbytes()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": compute_dtype, "attn_implementation": attn_implementation}
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
    if torch.cuda.is_available() and not on_cpu:
        # Quantised weights are created on their final device; the Trainer leaves them there.
        options["device_map"] = {"": torch.cuda.current_device()}
    path = check_base(base)
    check_quantization(read_config(path), quantization)
    name, revision = unpinned(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as fault:
        raise RequestError(
            f"model.base: the weights of {base} cannot be loaded: {_first_sentence(fault)}. "
            "Restore them, or name another base."
        ) from fault
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        # transformers initialises them at random, with a warning.
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RequestError(
            f"model.base: {base} lacks the weights {', '.join(missing[:3])}{more}; restore them, "
            "or name another base."
        )
    for module in model.modules():
        # On CPUs with AVX512-BF16 a forward in eval mode repacks 4-bit weights, after which the
        # next backward and any merge are wrong (LoRA gradient cosine 0.67); the unpacked path is
        # right.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.config.use_cache = False
    return model.train()


def plain_causal_lm(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def save_trained(model: Any, out: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Save the adapters in PEFT's format, or the whole model if it has none.

    Several adapters become one that equals all of them together.

    Args:
        model: A model as ``load_base`` and ``add_adapters`` return it.
        out: The folder.
        weights: Its trained weights by name, if it holds a part of them only.
    """
    if has_adapters(model) and frozen_adapters(model):
        save_joined(model, out)
    else:
        model.save_pretrained(out, state_dict=weights)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's model card, a form without content


def load_saved(
    saved: Path, base: str, quantization: Quantization, compute_dtype: torch.dtype
) -> Any:
    """Load what ``save_trained`` saved: adapters on their base, or a whole model.

    Raises:
        RequestError: As ``load_base``.
    """
    if not (saved / "adapter_config.json").exists():
        return load_base(str(saved), quantization, compute_dtype)
    from peft import PeftModel

    return PeftModel.from_pretrained(load_base(base, quantization, compute_dtype), str(saved))
