"""Say which parts of a base carry adapters, and which share of its weights is quantised."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from sft_lab.model.adapter_config import Adapters, add_adapters
from sft_lab.model.adapters import TRAINED
from sft_lab.model.qlora import Quantization, check_base, check_quantization, read_config
from sft_lab.model.size import quantized_layers
from sft_lab.terminal import percent


@dataclass(frozen=True)
class Coverage:
    """Hold what of a base's layers is adapted and quantised; embeddings and head do not count.

    Attributes:
        adapted: Number of modules, or of stacked experts, with an adapter, by name.
        plain: Number of matrices in the layers without one, by name.
        whole: Number of modules of which a copy is trained in full, or tokens of which embeddings
            are, by name: PEFT's ``modules_to_save`` and ``trainable_token_indices``.
        quantized_share: Share of the layers' weights that are quantised, in [0, 1].
    """

    adapted: dict[str, int]
    plain: dict[str, int]
    quantized_share: float
    whole: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        whole = f"trained besides: {_counted(self.whole)}; " if self.whole else ""
        return (
            f"adapters on {_counted(self.adapted)}; without: {_counted(self.plain)}; {whole}"
            f"{percent(self.quantized_share)} % of layer weights quantised"
        )


@cache
def coverage(base: str, quantization: Quantization, adapters: Adapters | None) -> Coverage:
    """Return what ``fit`` adapts and quantises, from the base's config alone; cached.

    Args:
        base: A folder, ``world://base`` or a hub name.
        quantization: As for ``load_base``.
        adapters: The adapters; None trains the whole base.

    Raises:
        RequestError: If the base is unknown, or the adapters do not fit it.
    """
    from transformers import AutoModelForCausalLM

    config = read_config(check_base(base))
    check_quantization(config, quantization)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        outside = {id(p) for end in ends if end is not None for p in end.parameters()}
        matrices = {
            name: parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in outside and not name.endswith("bias")
        }
        quantized = quantized_layers(model) if quantization in ("nf4", "int8") else []
        share = sum(layer.weight.numel() for layer in quantized) / max(1, sum(matrices.values()))
        adapted: set[str] = set()
        whole: dict[str, int] = {}
        if adapters is not None:
            model = add_adapters(model, adapters, seed=0)
            adapted, whole = _adapted(model), _whole(model)
    return Coverage(
        adapted=_by_name(adapted),
        plain=_by_name(name for name in matrices if name not in adapted),
        quantized_share=share,
        whole=whole,
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


def _whole(model: Any) -> dict[str, int]:
    """Return modules trained as a copy, and numbers of trained tokens, by name."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    copied, tokens = [], {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            copied.append(name)
        elif isinstance(module, TrainableTokensWrapper):
            trained = module.token_adapter.token_indices[TRAINED]
            tokens[f"tokens of {name.rpartition('.')[2]}"] = len(trained)
    return _by_name(copied) | tokens


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
