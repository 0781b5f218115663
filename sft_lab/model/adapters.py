"""Manage the LoRA adapters of a model in training: one trained, and frozen earlier ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRAINED = "default"
"""PEFT's name of the adapter that is trained."""

_FROZEN = "frozen_"


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Disable the adapters of a PEFT model within a ``with`` block, in eval mode.

    Eval mode keeps the base's dropout from advancing the random state of training. PEFT makes every
    active adapter trainable when it enables them again, so frozen ones are frozen again here.

    Raises:
        TypeError: If the model has no adapters.
    """
    if not has_adapters(model):
        raise TypeError(f"{type(model).__name__} has no adapters to turn off.")
    was_training = model.training
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        model.train(was_training)


def has_adapters(model: Any) -> bool:
    """Return whether a model is a PEFT model."""
    return hasattr(model, "peft_config")


def frozen_adapters(model: Any) -> list[str]:
    """Return the names of the frozen adapters, oldest first."""
    names = [name for name in model.peft_config if name.startswith(_FROZEN)]
    return sorted(names, key=lambda name: int(name.removeprefix(_FROZEN)))


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Return the trained parameters by name, as copies on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def freeze_and_restart(model: Any, seed: int) -> None:
    """Freeze a copy of the trained adapter, and reinitialise the trained one.

    The trained adapter starts with B at zero, so the model's function stays the same to the bit.
    Its parameters stay the same objects, so that an optimizer keeps its groups.

    Args:
        model: A PEFT model with LoRA adapters.
        seed: Seed of the new initial values.
    """
    trained = trained_weights(model)
    index = len(frozen_adapters(model)) + 1
    frozen = f"{_FROZEN}{index}"
    _add_frozen(model, frozen)
    parameters = dict(model.named_parameters())
    for name, value in trained.items():
        parameters[name.replace(f".{TRAINED}.", f".{frozen}.")].copy_(value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in _lora_layers(model):
            layer.reset_lora_parameters(TRAINED, init_lora_weights=True)


def add_frozen_adapters(model: Any, weights: Iterable[str]) -> None:
    """Add a checkpoint's frozen adapters, so that its weights can be loaded.

    Args:
        model: A PEFT model as ``add_adapters`` returns it, or one without adapters.
        weights: Names of the checkpoint's weights.
    """
    found = {part for name in weights for part in name.split(".") if part.startswith(_FROZEN)}
    for index in range(1, len(found) + 1):
        if f"{_FROZEN}{index}" not in model.peft_config:
            _add_frozen(model, f"{_FROZEN}{index}")


def kept_weights(model: Any) -> set[str]:
    """Return the names of the parameters in a checkpoint: trained ones and frozen adapters.

    The base is loaded separately.
    """
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or f".{_FROZEN}" in name
    }


def _add_frozen(model: Any, name: str) -> None:
    # Dropout applies to the trained adapter only; a frozen one belongs to the base.
    config = replace(model.peft_config[TRAINED], lora_dropout=0.0)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng():  # PEFT draws initial values, which are replaced
        model.add_adapter(name, config)
    model.base_model.set_adapter([*frozen_adapters(model), TRAINED])
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable)
    model.train(model.training)


def _lora_layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def save_joined(model: Any, out: Path) -> None:
    """Write one adapter in PEFT's format that equals all of a model's adapters together.

    A's rows and B's columns are concatenated. All adapters have the same scale, ``lora_alpha / r``,
    which the joined one keeps.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    names = [*frozen_adapters(model), TRAINED]
    parts = [get_peft_model_state_dict(model, adapter_name=name) for name in names]
    modules = dict(model.named_modules())

    def joined_weight(key: str) -> Tensor:
        each = [part[key].cpu() for part in parts]
        if key.endswith(("lora_A.weight", "lora_embedding_A")):  # experts, if any, come first
            rank = modules[key.rpartition(".lora_")[0]].r[TRAINED]
            ranks = [weight.unflatten(0, (-1, rank)) for weight in each]
            return torch.cat(ranks, dim=1).flatten(0, 1).contiguous()
        return torch.cat(each, dim=1).contiguous()

    weights = {key: joined_weight(key) for key in parts[-1]}
    config, count = model.peft_config[TRAINED], len(names)
    joined = replace(
        config,
        r=config.r * count,
        lora_alpha=config.lora_alpha * count,
        rank_pattern={name: rank * count for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: alpha * count for name, alpha in config.alpha_pattern.items()},
    )
    joined.inference_mode = True
    joined.save_pretrained(str(out))
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
