"""Test that bitsandbytes' functions are compiled when they are called, not when it is imported."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.model.late_compile import import_bitsandbytes

MODULE = """
import torch

@torch.compile(dynamic=False)
def double(number):
    return 2 * number

@torch.compile
def negative(number):
    return -number
"""


def test_a_function_is_compiled_at_its_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, dict[str, Any]]] = []

    def compile_now(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        compiled.append((function.__name__, settings))
        return function

    (tmp_path / "bitsandbytes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("torch.compile", compile_now)
    real = sys.modules.pop("bitsandbytes", None)
    try:
        import_bitsandbytes()
        module: Any = sys.modules["bitsandbytes"]
    finally:
        sys.modules.pop("bitsandbytes")
        if real is not None:
            sys.modules["bitsandbytes"] = real
    assert torch.compile is compile_now
    assert compiled == []
    assert [module.double(2), module.double(3), module.negative(4)] == [4, 6, -4]
    assert compiled == [("double", {"dynamic": False}), ("negative", {})]
