"""A run of one stage from another tool's SFT config: what the configs of all tools share."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft_lab.errors import RequestError
from sft_lab.paths import package_dir

TEMPLATES = {"llama3": "llama3", "chatml": "chatml", "alpaca": "alpaca", "vicuna": "vicuna_v1.1"}
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "${best_optimizer:}"),
}
SCHEDULES = {name: name for name in ("cosine", "linear", "constant")}


@dataclass(frozen=True)
class Imported:
    """A translated config.

    Attributes:
        tool: The tool whose config it was.
        config: A run's config.
        left_out: The keys that have no counterpart here, with their values.
    """

    tool: str
    config: dict[str, Any]
    left_out: dict[str, Any]


class Keys:
    """The keys of a config, from which those that are understood are taken."""

    def __init__(self, values: Any, prefix: str = "") -> None:
        if not isinstance(values, Mapping):
            where = prefix.rstrip(".")
            raise RequestError(f"import: {where}: expected keys and values, got {values!r:.40}.")
        self.left = {key: value for key, value in values.items() if value is not None}
        self.prefix = prefix

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value, null counting as left out; text stays text in a run's config."""
        value = self.left.pop(key, default)
        if "${" in str(value):
            raise RequestError(
                f"import: {self.prefix}{key}: in a run's config, ${{...}} refers to another key or "
                f"to the environment; remove it, got {value!r:.80}."
            )
        return value

    def flag(self, key: str) -> bool:
        """Return whether a key is true; a value of another kind is left."""
        return isinstance(self.left.get(key), bool) and bool(self.left.pop(key))

    def choose(self, key: str, known: Mapping[str, Any], default: Any = None) -> Any:
        """Return the counterpart of a value; a value without one is left."""
        value = self.left.get(key)
        if not isinstance(value, str) or value not in known:
            return default
        return known[self.left.pop(key)]

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number; another value is left."""
        value = self.left.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            return default  # a fraction, or NaN or infinite, whose remainders are NaN
        return int(self.left.pop(key))

    def number(self, key: str, default: float) -> float:
        """Return a number, which YAML may read as text (1e-4); another value is left."""
        try:
            value = float(self.left.get(key, default))
        except (TypeError, ValueError):
            return default
        if not math.isfinite(value):
            return default
        self.left.pop(key, None)
        return value

    def left_out(self) -> dict[str, Any]:
        """Return the keys that nothing has taken."""
        return {f"{self.prefix}{key}": value for key, value in self.left.items()}


def renamed(keys: Keys, names: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's arguments that a config sets to something, but for those that are off."""
    taken = {
        ours: (keys.flag if ours.startswith("use_") else keys.take)(theirs)
        for theirs, ours in names.items()
        if theirs in keys.left
    }
    if taken.get("modules_to_save"):
        taken["modules_to_save"] = listed(taken["modules_to_save"])
    return {name: value for name, value in taken.items() if value or name == "init_lora_weights"}


def listed(text: Any) -> list[str]:
    """Return the parts of a list, or of text with commas."""
    parts = text if isinstance(text, list) else str(text).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def lora_or_peft(lora: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the adapters of a model: the short form of LoRA if it says all of them."""
    if not more:
        return {"lora": lora}
    return {
        "lora": None,
        "peft": {"class_path": "peft.LoraConfig", "init_args": lora | more},
    }


def run_config(
    keys: Keys,
    *,
    sources: Mapping[str, Any],
    template: str | None,
    max_length: int | None,
    packing: bool,
    micro_batch_size: int,
    epochs: int | None,
    schedule: str | None,
    **model: Any,
) -> dict[str, Any]:
    """Return a run of one stage, with the shipped Trainer and benchmarks."""
    configs = package_dir() / "configs"
    trainer = yaml.safe_load((configs / "trainer.yaml").read_text(encoding="utf-8"))
    evaluation = yaml.safe_load((configs / "paper/evaluation.yaml").read_text(encoding="utf-8"))
    for benchmark in evaluation["benchmarks"].values():
        del benchmark["init_args"]["source"]  # which of these sources teaches it is not known
    steps = keys.whole("max_steps")
    stage = {
        "mixture": dict.fromkeys(sources, 1),
        "max_steps": steps if steps and steps > 0 else None,
        "epochs": epochs or (None if steps and steps > 0 else 1),
        "lr": keys.number("learning_rate", 2e-4),
        "warmup_ratio": keys.number("warmup_ratio", 0.0),
        "lr_schedule": schedule,
    }
    data = {
        "packing": packing,
        "batch_size": micro_batch_size * (keys.whole("gradient_accumulation_steps", 1) or 1),
        "micro_batch_size": micro_batch_size,
        "stages": {"all": _given(stage)},
    }
    model["weight_decay"] = keys.number("weight_decay", 0.0)
    adapters = model.pop("adapters") or {"lora": None}
    corpus = {"sources": sources, "template": template, "max_length": max_length}
    return {
        "seed_everything": keys.whole("seed", 0),
        "trainer": trainer,
        "model": _given(model) | adapters,
        "corpus": _given(corpus),
        "evaluation": evaluation,
        "data": data,
    }


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def checked(path: Path, key: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return sources without the settings that are not given.

    Raises:
        RequestError: If there is no source.
    """
    if not sources:
        raise RequestError(f"import {path}: {key} names no data set to train on.")
    return {name: _given(source) for name, source in sources.items()}


def source_name(path: str, taken: Mapping[str, Any]) -> str:
    """Return a name for a data set that can be part of metric keys."""
    last = path.rstrip("/").rpartition("/")[2].removesuffix(".gz")
    name = re.sub(r"\W+", "_", re.sub(r"\.(jsonl?|parquet)$", "", last), flags=re.ASCII).strip("_")
    name = name if name and name != "all" else "source"
    return name if name not in taken else f"{name}_{len(taken) + 1}"
