"""Import bitsandbytes without the compiler of torch, which takes a second that few runs need."""

import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import torch


def import_bitsandbytes() -> None:
    """Import bitsandbytes, before PEFT or transformers do.

    It compiles four functions for devices without kernels of its own, and torch imports its
    compiler for that. Here they are compiled when one of them is called.
    """
    if "bitsandbytes" in sys.modules:
        return
    compile_now = torch.compile
    torch.compile = _late(compile_now)
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def _late(compile_now: Callable[..., Any]) -> Any:
    """Return a decorator that compiles a function at its first call."""

    def compile_later(function: Callable[..., Any] | None = None, **settings: Any) -> Any:
        if function is None:
            return partial(compile_later, **settings)
        compiled = cache(lambda: compile_now(function, **settings))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    return compile_later
