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


def save_trained(model: Any, out: Path) -> None:
    """Write what was trained: adapters in PEFT's format, or the whole model without them."""
    model.save_pretrained(out)
