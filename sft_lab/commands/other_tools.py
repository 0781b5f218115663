"""Translate the SFT configs of axolotl and LLaMA-Factory: data, LoRA, batch, epochs and rate."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft_lab.errors import RequestError
from sft_lab.paths import package_dir

_TEMPLATES = {"llama3": "llama3", "chatml": "chatml", "alpaca": "alpaca", "vicuna": "vicuna_v1.1"}
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "${best_optimizer:}"),
}
_SCHEDULES = ("cosine", "linear", "constant")
_AXOLOTL_PEFT = {
    **{f"peft_{name}": name for name in ("use_dora", "use_rslora", "init_lora_weights")},
    **{f"peft_{name}": name for name in ("layers_to_transform", "layers_pattern")},
    **{f"peft_{name}": name for name in ("trainable_token_indices", "ensure_weight_tying")},
    **{f"lora_{name}": name for name in ("modules_to_save", "fan_in_fan_out", "target_parameters")},
}
_LLAMA_FACTORY_PEFT = {
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "additional_target": "modules_to_save",
    "pissa_init": "init_lora_weights",
}
"""Arguments of ``peft.LoraConfig`` that ``model.lora`` lacks, by the tool's key."""
_AXOLOTL_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": None}


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


class _Keys:
    """The keys of a config, from which those that are understood are taken."""

    def __init__(self, values: Any, prefix: str = "") -> None:
        if not isinstance(values, Mapping):
            where = prefix.rstrip(".")
            raise RequestError(f"import: {where}: expected keys and values, got {values!r:.40}.")
        self.left = {key: value for key, value in values.items() if value is not None}
        self.prefix = prefix

    def take(self, key: str, default: Any = None) -> Any:
        return self.left.pop(key, default)

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
        return {f"{self.prefix}{key}": value for key, value in self.left.items()}


def translate(path: Path) -> Imported:
    """Translate a config file of axolotl or LLaMA-Factory.

    Raises:
        RequestError: If it is neither, trains something else, or names data that are unknown.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        reason = " ".join(str(fault).split())
        raise RequestError(f"import {path}: cannot be read as YAML: {reason}.") from fault
    if isinstance(values, dict) and "base_model" in values:
        return _from_axolotl(path, _Keys(values))
    if isinstance(values, dict) and "model_name_or_path" in values:
        return _from_llama_factory(path, _Keys(values))
    raise RequestError(
        f"import {path}: neither base_model (axolotl) nor model_name_or_path (LLaMA-Factory) is a "
        "key of it; name a config of one of them."
    )


def _from_axolotl(path: Path, keys: _Keys) -> Imported:
    if rl := keys.take("rl"):
        raise RequestError(f"import {path}: rl: {rl} is no supervised fine-tuning.")
    adapter = keys.take("adapter") or None
    if adapter not in (None, "lora", "qlora"):
        raise RequestError(f"import {path}: adapter: expected lora or qlora, got {adapter!r}.")
    in_4, in_8 = bool(keys.take("load_in_4bit")), bool(keys.take("load_in_8bit"))
    linear, modules = keys.take("lora_target_linear"), keys.take("lora_target_modules")
    lora = {
        "r": keys.take("lora_r", 8),
        "lora_alpha": keys.take("lora_alpha", 16),
        "lora_dropout": keys.take("lora_dropout", 0.0),
        "target_modules": "all-linear" if linear or not modules else modules,
    }
    left_out: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    for number, given in enumerate(_entries(path, keys.take("datasets"))):
        entry = _Keys(given, f"datasets[{number}].")
        source = {
            "path": entry.take("path"),
            "format": entry.choose("type", _AXOLOTL_FORMATS),
            "subset": entry.take("name"),
            "split": entry.take("split", "train"),
            "data_files": entry.take("data_files"),
            "revision": entry.take("revision"),
        }
        if entry.left.get("field_messages") in ("messages", "conversations"):
            entry.take("field_messages")
        sources[_source_name(str(source["path"]), sources)] = source
        left_out |= entry.left_out()
    if keys.left.get("train_on_inputs") is False:  # as it is here
        keys.take("train_on_inputs")
    micro_batch_size = keys.whole("micro_batch_size", 1) or 1
    config = _config(
        keys,
        base=keys.take("base_model"),
        revision=keys.take("revision_of_model"),
        quantization="nf4" if in_4 or adapter == "qlora" else "int8" if in_8 else "bf16",
        adapters=_lora(lora, _renamed(keys, _AXOLOTL_PEFT)) if adapter else None,
        sources=_checked(path, "datasets", sources),
        template=keys.choose("chat_template", _TEMPLATES),
        max_length=keys.whole("sequence_len", 2048),
        packing=bool(keys.take("sample_packing")),
        micro_batch_size=micro_batch_size,
        epochs=keys.whole("num_epochs"),
        schedule=keys.choose("lr_scheduler", dict(zip(_SCHEDULES, _SCHEDULES, strict=True))),
        optimizer=keys.choose("optimizer", _OPTIMIZERS, "adamw"),
        gradient_checkpointing=bool(keys.take("gradient_checkpointing")),
    )
    return Imported("axolotl", config, left_out | keys.left_out())


def _from_llama_factory(path: Path, keys: _Keys) -> Imported:
    if (stage := keys.take("stage", "sft")) != "sft":
        raise RequestError(f"import {path}: stage: {stage} is no supervised fine-tuning (sft).")
    kind = keys.take("finetuning_type", "lora")
    kinds = {"lora": _llama_factory_lora, "oft": _llama_factory_oft, "full": lambda keys: None}
    if kind not in kinds:
        raise RequestError(
            f"import {path}: finetuning_type: expected {', '.join(kinds)}, got {kind!r}."
        )
    keys.take("do_train")
    adapters = kinds[kind](keys)
    folder = Path(keys.take("dataset_dir", "data"))
    sources, left_out = _listed_sources(path, folder, _listed(keys.take("dataset", "")))
    bits = keys.whole("quantization_bit")
    off = keys.take("disable_gradient_checkpointing", False)
    config = _config(
        keys,
        base=keys.take("model_name_or_path"),
        revision=keys.take("model_revision"),
        quantization={4: "nf4", 8: "int8"}.get(bits or 16, "bf16"),
        adapters=adapters,
        sources=_checked(path, "dataset", sources),
        template=keys.choose("template", _TEMPLATES),
        max_length=keys.whole("cutoff_len", 2048),
        packing=bool(keys.take("packing")),
        micro_batch_size=keys.whole("per_device_train_batch_size", 8) or 8,
        epochs=keys.whole("num_train_epochs"),
        schedule=keys.choose("lr_scheduler_type", dict(zip(_SCHEDULES, _SCHEDULES, strict=True))),
        optimizer=keys.choose("optim", _OPTIMIZERS, "adamw"),
        gradient_checkpointing=not off,
    )
    return Imported("LLaMA-Factory", config, left_out | keys.left_out())


def _llama_factory_lora(keys: _Keys) -> dict[str, Any]:
    rank = keys.whole("lora_rank", 8) or 8
    lora = {
        "r": rank,
        "lora_alpha": keys.take("lora_alpha", 2 * rank),
        "lora_dropout": keys.take("lora_dropout", 0.0),
        "target_modules": _targets(keys.take("lora_target", "all")),
    }
    more = _renamed(keys, _LLAMA_FACTORY_PEFT)
    if more.pop("init_lora_weights", False):
        more["init_lora_weights"] = "pissa"
    if "modules_to_save" in more:
        more["modules_to_save"] = _listed(more["modules_to_save"])
    return _lora(lora, more)


def _llama_factory_oft(keys: _Keys) -> dict[str, Any]:
    rank = keys.whole("oft_rank", 0)
    arguments = {
        "r": rank,
        "oft_block_size": keys.whole("oft_block_size", 0 if rank else 32),
        "module_dropout": keys.take("module_dropout", 0.0),
        "target_modules": _targets(keys.take("oft_target", "all")),
    }
    if (modules := keys.take("additional_target")) is not None:
        arguments["modules_to_save"] = _listed(modules)
    return {"lora": None, "peft": {"class_path": "peft.OFTConfig", "init_args": arguments}}


def _targets(text: Any) -> str | list[str]:
    return "all-linear" if text == "all" else _listed(text)


def _renamed(keys: _Keys, names: Mapping[str, str]) -> dict[str, Any]:
    """Return PEFT's arguments that a config sets to something, but for those that are off."""
    taken = {ours: keys.take(theirs) for theirs, ours in names.items() if theirs in keys.left}
    return {name: value for name, value in taken.items() if value or name == "init_lora_weights"}


def _lora(lora: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the adapters of a model: the short form of LoRA if it says all of them."""
    if not more:
        return {"lora": lora}
    return {
        "lora": None,
        "peft": {"class_path": "peft.LoraConfig", "init_args": lora | more},
    }


def _listed_sources(
    path: Path, folder: Path, names: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data sets of LLaMA-Factory's ``dataset_info.json``, and what is left out."""
    found = [f / "dataset_info.json" for f in (path.parent / folder, folder)]
    info = next((file for file in found if file.is_file()), None)
    if info is None:
        raise RequestError(
            f"import {path}: dataset_dir: no {found[0]}, which says where its data sets are; copy "
            "it there, or name its folder by dataset_dir."
        )
    try:
        known = json.loads(info.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise RequestError(f"import {path}: {info} cannot be read as JSON: {fault}.") from fault
    if not isinstance(known, dict):
        raise RequestError(f"import {path}: {info} holds no data sets by name.")
    sources: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for name in names:
        if name not in known:
            raise RequestError(f"import {path}: dataset: {info} has no {name!r}.")
        entry = _Keys(known[name], f"dataset_info.{name}.")
        hub, file = entry.take("hf_hub_url"), entry.take("file_name")
        formats = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
        sources[_source_name(name, sources)] = {
            "path": hub or str(info.parent / str(file)),
            "format": entry.choose("formatting", formats),
            "subset": entry.take("subset"),
            "split": entry.take("split", "train"),
        }
        left_out |= entry.left_out()
    return sources, left_out


def _config(
    keys: _Keys,
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


def _checked(path: Path, key: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    if not sources:
        raise RequestError(f"import {path}: {key} names no data set to train on.")
    return {name: _given(source) for name, source in sources.items()}


def _entries(path: Path, given: Any) -> list[Any]:
    if not isinstance(given, list | None):
        raise RequestError(f"import {path}: datasets: expected a list, got {given!r:.40}.")
    return given or []


def _listed(text: Any) -> list[str]:
    parts = text if isinstance(text, list) else str(text).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def _source_name(path: str, taken: Mapping[str, Any]) -> str:
    """Return a name for a data set that can be part of metric keys."""
    last = path.rstrip("/").rpartition("/")[2].removesuffix(".gz")
    name = re.sub(r"\W+", "_", re.sub(r"\.(jsonl?|parquet)$", "", last), flags=re.ASCII).strip("_")
    name = name if name and name != "all" else "source"
    return name if name not in taken else f"{name}_{len(taken) + 1}"
