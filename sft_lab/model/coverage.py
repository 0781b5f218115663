"""Say which parts of a base carry adapters, and which share of its weights is quantised."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sft_lab.model.qlora import Lora, Quantization, add_lora, check_base, read_config
from sft_lab.model.size import quantized_layers
from sft_lab.terminal import percent


@dataclass(frozen=True)
class Coverage:
    """Hold what of a base's layers is adapted and quantised; embeddings and head do not count.

    Attributes:
        adapted: Number of modules, or of stacked experts, with an adapter, by name.
        plain: Number of matrices in the layers without one, by name.
        quantized_share: Share of the layers' weights that are quantised, in [0, 1].
    """

    adapted: dict[str, int]
    plain: dict[str, int]
    quantized_share: float

    def to_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"adapters on {_counted(self.adapted)}; without: {_counted(self.plain)}; "
            f"{percent(self.quantized_share)} % of layer weights quantised"
        )


def coverage(base: str, quantization: Quantization, lora: Lora | None) -> Coverage:
    """Return what ``fit`` adapts and quantises, from the base's config alone.

    Args:
        base: A folder, ``world://base`` or a hub name.
        quantization: As for ``load_base``.
        lora: The adapters; None trains the whole base.

    Raises:
        RequestError: If the base is unknown, or the adapters do not fit it.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(read_config(check_base(base)))
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        outside = {id(p) for end in ends if end is not None for p in end.parameters()}
        matrices = {
            name: parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in outside and not name.endswith("bias")
        }
        quantized = quantized_layers(model) if quantization in ("nf4", "int8") else []
        share = sum(layer.weight.numel() for layer in quantized) / max(1, sum(matrices.values()))
        adapted = set() if lora is None else _adapted(add_lora(model, lora, seed=0))
    return Coverage(
        adapted=_by_name(name for name in matrices if name in adapted),
        plain=_by_name(name for name in matrices if name not in adapted),
        quantized_share=share,
    )


def _adapted(model: Any) -> set[str]:
    """Return the names, in the base, of the parameters that adapters change."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = set()
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            parameter = getattr(module, "parameter_name", "weight")
            found.add(f"{name.replace('.base_layer', '')}.{parameter}")
    return found


def _by_name(parameters: Any) -> dict[str, int]:
    """Count parameters by the end of their names, such as ``q_proj``, ``experts.down_proj``."""
    names = (name.removesuffix(".weight").split(".") for name in parameters)
    stacked = ("experts", "router", "gate")
    return dict(
        sorted(
            Counter(
                ".".join(parts[-2:]) if len(parts) > 1 and parts[-2] in stacked else parts[-1]
                for parts in names
            ).items()
        )
    )


def _counted(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in parts.items()) or "nothing"
