"""Translate the SFT configs of axolotl."""

from pathlib import Path
from typing import Any

from sft_lab.commands.imported_run import (
    OPTIMIZERS,
    SCHEDULES,
    TEMPLATES,
    Imported,
    Keys,
    checked,
    lora_or_peft,
    renamed,
    run_config,
    source_name,
)
from sft_lab.errors import RequestError

_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": None}
_PEFT = {
    **{f"peft_{name}": name for name in ("use_dora", "use_rslora", "init_lora_weights")},
    **{f"peft_{name}": name for name in ("layers_to_transform", "layers_pattern")},
    **{f"peft_{name}": name for name in ("trainable_token_indices", "ensure_weight_tying")},
    **{f"lora_{name}": name for name in ("modules_to_save", "fan_in_fan_out", "target_parameters")},
}
"""Arguments of ``peft.LoraConfig`` that ``model.lora`` lacks, by the tool's key."""


def from_axolotl(path: Path, keys: Keys) -> Imported:
    """Return a run with the data, adapters and rates of a config.

    Args:
        path: Its file, for errors.
        keys: Its keys.

    Raises:
        RequestError: If it trains something else, or names no data.
    """
    if rl := keys.take("rl"):
        raise RequestError(f"import {path}: rl: {rl} is no supervised fine-tuning.")
    adapter = keys.take("adapter") or None
    if adapter not in (None, "lora", "qlora"):
        raise RequestError(f"import {path}: adapter: expected lora or qlora, got {adapter!r}.")
    in_4, in_8 = bool(keys.take("load_in_4bit")), bool(keys.take("load_in_8bit"))
    linear, modules = keys.take("lora_target_linear"), keys.take("lora_target_modules")
    lora = {
        "r": keys.whole("lora_r", 8),
        "lora_alpha": keys.whole("lora_alpha", 16),
        "lora_dropout": keys.number("lora_dropout", 0.0),
        "target_modules": "all-linear" if linear or not modules else modules,
    }
    left_out: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    for number, given in enumerate(_entries(path, keys.take("datasets"))):
        entry = Keys(given, f"datasets[{number}].")
        source = {
            "path": entry.take("path"),
            "format": entry.choose("type", _FORMATS),
            "subset": entry.take("name"),
            "split": entry.take("split", "train"),
            "data_files": entry.take("data_files"),
            "revision": entry.take("revision"),
        }
        if entry.left.get("field_messages") in ("messages", "conversations"):
            entry.take("field_messages")
        sources[source_name(str(source["path"]), sources)] = source
        left_out |= entry.left_out()
    if keys.left.get("train_on_inputs") is False:  # as it is here
        keys.take("train_on_inputs")
    micro_batch_size = keys.whole("micro_batch_size", 1) or 1
    config = run_config(
        keys,
        base=keys.take("base_model"),
        revision=keys.take("revision_of_model"),
        quantization="nf4" if in_4 or adapter == "qlora" else "int8" if in_8 else "bf16",
        adapters=lora_or_peft(lora, renamed(keys, _PEFT)) if adapter else None,
        sources=checked(path, "datasets", sources),
        template=keys.choose("chat_template", TEMPLATES),
        max_length=keys.whole("sequence_len", 2048),
        packing=bool(keys.take("sample_packing")),
        micro_batch_size=micro_batch_size,
        epochs=keys.whole("num_epochs"),
        schedule=keys.choose("lr_scheduler", SCHEDULES),
        optimizer=keys.choose("optimizer", OPTIMIZERS, "adamw"),
        gradient_checkpointing=bool(keys.take("gradient_checkpointing")),
    )
    return Imported("axolotl", config, left_out | keys.left_out())


def _entries(path: Path, given: Any) -> list[Any]:
    if not isinstance(given, list | None):
        raise RequestError(f"import {path}: datasets: expected a list, got {given!r:.40}.")
    return given or []
