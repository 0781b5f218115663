"""Refuse, before anything loads, what a run with a sharded model cannot do exactly."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from sft_lab.errors import RequestError

_CONTINUE = "sft_lab.training.hand_over.Continue"


def check_sharded(config: Mapping[str, Any]) -> None:
    """Check that all of a config is exact where ``trainer.strategy`` is fsdp.

    Args:
        config: A run's resolved config.

    Raises:
        RequestError: Naming the first key that is not, why, and the fix.
    """
    for key, value, why, fix in _inexact(config):
        raise RequestError(f"{key} {value} does not go with trainer.strategy fsdp: {why}; {fix}.")


def _inexact(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    """Yield key, value, reason and fix of what is refused."""
    model, suite = config["model"], config["evaluation"]
    precision = str(config["trainer"]["precision"])
    if "16" in precision and "bf16" not in precision:
        yield (
            *("trainer.precision", precision),
            "float16 needs gradients that are scaled, which is not done over shards",
            "set it to bf16-mixed or 32-true",
        )
    if (quantization := model["quantization"]) in ("nf4", "int8"):
        yield (
            *("model.quantization", quantization),
            "a sharded layer of bitsandbytes loses the scales of its weights",
            "set it to bf16 or fp32, or trainer.strategy to ddp",
        )
    if (peft := model["peft"]) is not None:
        name = peft.get("class_path")
        yield "model.peft", name, "only LoRA has been tried", "give model.lora"
    for key in ("torch_compile", "fused_lora"):
        if model[key]:
            yield f"model.{key}", "true", "it has not been tried", "set it to false"
    if (optimizer := model["optimizer"]) != "adamw":
        yield "model.optimizer", optimizer, "its states are not sharded", "set it to adamw"
    if (weights := suite["weights"]) == "merged":
        yield (
            *("evaluation.weights", weights),
            "a merged copy would be whole on each device",
            "set it to live",
        )
    if (engine := suite["engine"]) != "native":
        name = engine["class_path"] if isinstance(engine, Mapping) else engine
        yield "evaluation.engine", name, "it needs the whole model", "set it to native"
    for stage, settings in config["data"]["stages"].items():
        hand_over = settings.get("hand_over")
        if hand_over is not None and hand_over["class_path"] != _CONTINUE:
            yield (
                *(f"data.stages.{stage}.hand_over", hand_over["class_path"]),
                "it takes trained weights for whole",
                f"leave it out, or set {_CONTINUE}",
            )
        for term in settings.get("loss") or []:
            module, _, name = term["class_path"].rpartition(".")
            if getattr(import_module(module), name).needs_base_logits:
                yield (
                    *(f"data.stages.{stage}.loss", term["class_path"]),
                    "it runs the base with its adapters turned off",
                    "leave it out",
                )
