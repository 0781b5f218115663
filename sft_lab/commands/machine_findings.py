"""Report what this machine has, and whether 4-bit training is correct on it."""

import os
import platform
import socket
from importlib.metadata import version
from typing import Any

import torch

from sft_lab.config.compose import best_precision
from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox.sandbox import isolation_fault, isolation_route
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import load_base
from sft_lab.paths import find_config
from sft_lab.runs.store_uri import check_store, local_file

_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "mlflow")


def gradient_cosine(quantization: Any = "nf4") -> float:
    """Return the cosine of LoRA gradients before and after an evaluation; 1 if all is well.

    On some CPUs bitsandbytes repacks 4-bit weights during a forward in eval mode, and the next
    backward is wrong. The lab turns repacking off, and this checks that it is off.
    """
    model = add_adapters(load_base("world://base", quantization, torch.float32), Lora(r=8), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    input_ids = torch.arange(32, device=next(model.parameters()).device)[None] % 200

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=input_ids)
    merged_copy(model, torch.float32)
    model.train()
    return float(torch.nn.functional.cosine_similarity(before, gradient(), dim=0))


def findings(tracking_uri: str) -> dict[str, str]:
    """Return the findings about this machine, by name."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        cuda = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        cuda = "none: training on the CPU"
    precision = best_precision()
    native = "native bf16" if precision == "bf16-mixed" else "bf16 only emulated, so float32"
    cosine = gradient_cosine()
    gradients = "correct" if cosine > 0.999 else "WRONG, do not train in 4 bits on this machine"
    fault = isolation_fault()
    levels = f"isolated (by {isolation_route()}), limited"
    python = f"Python {platform.python_version()}"
    return {
        "host": f"{socket.gethostname()}, {python}, {os.cpu_count()} CPUs",
        "packages": ", ".join(f"{name}=={version(name)}" for name in _PACKAGES),
        "CUDA": cuda,
        "precision": f"{precision} ({native})",
        "4-bit gradients": f"{gradients} (cosine {cosine:.4f} before and after an evaluation)",
        "MLflow store": _store_state(tracking_uri),
        "sandbox": f"limited only: {fault}" if fault else levels,
        "configs": str(find_config("configs/trainer.yaml").parent.resolve()),
    }


def _store_state(tracking_uri: str) -> str:
    try:
        check_store(tracking_uri)
    except RequestError as fault:
        return str(fault)
    file = local_file(tracking_uri)
    if file is None or file.exists():
        return f"{tracking_uri}, available"
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f"{tracking_uri} cannot be created: no permission to write in {folder}"
    return f"{tracking_uri}, created by the first run"
