"""Translate the SFT configs of LLaMA-Factory."""

import json
from pathlib import Path
from typing import Any

from sft_lab.commands.imported_run import (
    OPTIMIZERS,
    SCHEDULES,
    TEMPLATES,
    Imported,
    Keys,
    checked,
    listed,
    lora_or_peft,
    renamed,
    run_config,
    source_name,
)
from sft_lab.errors import RequestError

_PEFT = {
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "additional_target": "modules_to_save",
    "pissa_init": "init_lora_weights",
}
"""Arguments of ``peft.LoraConfig`` that ``model.lora`` lacks, by the tool's key."""


def from_llama_factory(path: Path, keys: Keys) -> Imported:
    """Return a run with the data, adapters and rates of a config.

    Args:
        path: Its file, from which data are found.
        keys: Its keys.

    Raises:
        RequestError: If it trains something else, or names data that are unknown.
    """
    if (stage := keys.take("stage", "sft")) != "sft":
        raise RequestError(f"import {path}: stage: {stage} is no supervised fine-tuning (sft).")
    kind = keys.take("finetuning_type", "lora")
    kinds = {"lora": _lora, "oft": _oft, "full": lambda keys: None}
    if kind not in kinds:
        raise RequestError(
            f"import {path}: finetuning_type: expected {', '.join(kinds)}, got {kind!r}."
        )
    keys.take("do_train")
    adapters = kinds[kind](keys)
    folder = Path(keys.take("dataset_dir", "data"))
    sources, left_out = _listed_sources(path, folder, listed(keys.take("dataset", "")))
    bits = keys.whole("quantization_bit")
    off = keys.take("disable_gradient_checkpointing", False)
    config = run_config(
        keys,
        base=keys.take("model_name_or_path"),
        revision=keys.take("model_revision"),
        quantization={4: "nf4", 8: "int8"}.get(bits or 16, "bf16"),
        adapters=adapters,
        sources=checked(path, "dataset", sources),
        template=keys.choose("template", TEMPLATES),
        max_length=keys.whole("cutoff_len", 2048),
        packing=bool(keys.take("packing")),
        micro_batch_size=keys.whole("per_device_train_batch_size", 8) or 8,
        epochs=keys.whole("num_train_epochs"),
        schedule=keys.choose("lr_scheduler_type", SCHEDULES),
        optimizer=keys.choose("optim", OPTIMIZERS, "adamw"),
        gradient_checkpointing=not off,
    )
    return Imported("LLaMA-Factory", config, left_out | keys.left_out())


def _lora(keys: Keys) -> dict[str, Any]:
    rank = keys.whole("lora_rank", 8) or 8
    lora = {
        "r": rank,
        "lora_alpha": keys.whole("lora_alpha", 2 * rank),
        "lora_dropout": keys.number("lora_dropout", 0.0),
        "target_modules": _targets(keys.take("lora_target", "all")),
    }
    more = renamed(keys, _PEFT)
    if more.pop("init_lora_weights", False):
        more["init_lora_weights"] = "pissa"
    return lora_or_peft(lora, more)


def _oft(keys: Keys) -> dict[str, Any]:
    rank = keys.whole("oft_rank", 0)
    arguments = {
        "r": rank,
        "oft_block_size": keys.whole("oft_block_size", 0 if rank else 32),
        "module_dropout": keys.number("module_dropout", 0.0),
        "target_modules": _targets(keys.take("oft_target", "all")),
    }
    if (modules := keys.take("additional_target")) is not None:
        arguments["modules_to_save"] = listed(modules)
    return {"lora": None, "peft": {"class_path": "peft.OFTConfig", "init_args": arguments}}


def _targets(text: Any) -> str | list[str]:
    return "all-linear" if text == "all" else listed(text)


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
        entry = Keys(known[name], f"dataset_info.{name}.")
        hub, file = entry.take("hf_hub_url"), entry.take("file_name")
        formats = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
        sources[source_name(name, sources)] = {
            "path": hub or str(info.parent / str(file)),
            "format": entry.choose("formatting", formats),
            "subset": entry.take("subset"),
            "split": entry.take("split", "train"),
        }
        left_out |= entry.left_out()
    return sources, left_out
