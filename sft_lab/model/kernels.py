"""Choose how attention is computed, and compile a model's layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sft_lab.errors import RequestError
from sft_lab.model.qlora import check_base, read_config


def check_attention(base: str, attn_implementation: str | None) -> None:
    """Check, without its weights, that a base can use an attention implementation here.

    Args:
        base: A folder, ``world://base`` or a hub name; only its config is read.
        attn_implementation: transformers' name of it, or a kernel of the hub; None for its default.

    Raises:
        RequestError: If it cannot.
    """
    if attn_implementation is None:
        return
    from transformers import AutoModelForCausalLM

    if "flash" in attn_implementation and not torch.cuda.is_available():
        raise _unavailable(attn_implementation, "it needs CUDA, found none")
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                read_config(check_base(base)), attn_implementation=attn_implementation
            )
    except (ImportError, ValueError, OSError) as fault:
        raise _unavailable(attn_implementation, str(fault).partition(". ")[0][:200]) from fault


def _unavailable(name: str, why: str) -> RequestError:
    words = " ".join(why.split()).rstrip(".")
    return RequestError(
        f"model.attn_implementation {name} is unavailable: {words}. Leave it out, or set it to "
        "sdpa or eager."
    )


def check_compiler(torch_compile: bool) -> None:
    """Check that layers can be compiled on this machine.

    Raises:
        RequestError: If there is no compiler.
    """
    if not torch_compile:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    try:
        found = has_triton() if torch.cuda.is_available() else bool(get_cpp_compiler())
    except RuntimeError:
        found = False
    if not found:
        raise RequestError(
            "model.torch_compile needs Triton on a GPU, or a C++ compiler on a CPU, found none; "
            "install one, or set it to false."
        )


def compile_layers(causal_lm: Any) -> None:
    """Compile every decoder layer for inputs of any length, when it first runs.

    Layers share their code, so that they are compiled once; the decoder around them stays as it
    is, because ``hidden_states`` takes its place.
    """
    for layer in decoder_layers(causal_lm):
        layer.compile(dynamic=True)


def decoder_layers(causal_lm: Any) -> list[Any]:
    """Return the layers of a transformers model, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in causal_lm.modules() if isinstance(m, GradientCheckpointingLayer)]


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Run a model's layers as they were written within a ``with`` block.

    Generation would compile them again for every state of its cache.
    """
    compiled = [m for m in model.modules() if m._compiled_call_impl is not None]
    kept = [module._compiled_call_impl for module in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in zip(compiled, kept, strict=True):
            module._compiled_call_impl = call
