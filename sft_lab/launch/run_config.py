"""A run's config after parsing: typed, resolved, and each value with its origin."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from sft_lab.config.compose import Composed
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Adapters, Lora, adapters_of
from sft_lab.model.sharding import FSDP
from sft_lab.model.size import ModelSettings
from sft_lab.paths import pinned
from sft_lab.runs.logger import NO_LOGGER


@dataclass(frozen=True)
class RunConfig:
    """A parsed and checked config of a run.

    Attributes:
        command: ``fit``, ``validate`` or ``test``.
        values: Typed values by group, from which ``build`` makes the run.
        plain: The same as plain values with all defaults filled in; what the record holds.
        written: The merged files and overrides, with the origin of every written value.
        strategy: Name of the first config file without its ending.
        ckpt_path: ``last``, a checkpoint to resume or score, or None.
        fork_from: ``RUN@STAGE`` to start from, or None.
    """

    command: str
    values: Namespace
    plain: Mapping[str, Any]
    written: Composed
    strategy: str
    ckpt_path: str | None = None
    fork_from: str | None = None

    def origin(self, key: str) -> str:
        """Return ``"file, line n: "`` where a dotted key was written, or "" for a default."""
        return self.written.origin(key)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.plain["seed_everything"])

    @property
    def run_name(self) -> str:
        """The name of the run in MLflow: the configured one, or strategy, k and seed."""
        given = self.logger["run_name"]
        if given:
            return str(given)
        k = self.plain["data"]["k"]
        parts = [
            "" if self.command == "fit" else self.command,
            self.strategy,
            "" if k is None else f"k={_written(k)}",
            f"seed {self.seed}",
        ]
        return " ".join(part for part in parts if part)

    @property
    def logger(self) -> Mapping[str, Any]:
        """The arguments of the run's ``RunLogger``."""
        arguments: Mapping[str, Any] = find_run_logger(self.plain["trainer"]["logger"])["init_args"]
        return arguments

    @property
    def tracking_uri(self) -> str:
        """The store of the run."""
        return str(self.logger["tracking_uri"])

    @property
    def tokenizer(self) -> str:
        """The tokenizer of the run, ``pinned`` to its revision."""
        corpus = self.plain["corpus"]
        return pinned(corpus["tokenizer"], corpus["tokenizer_revision"])

    def renderer(self) -> Renderer:
        """Load the run's tokenizer, and return the renderer of its rows and prompts."""
        corpus = self.plain["corpus"]
        tokenizer = load_tokenizer(self.tokenizer)
        return Renderer(tokenizer, corpus["template"], corpus["template_args"])

    @property
    def model_settings(self) -> ModelSettings:
        """The settings that decide the size and speed of the run's model."""
        model = self.plain["model"]
        precision = self.plain["trainer"]["precision"]
        return ModelSettings(
            base=pinned(model["base"], model["revision"]),
            quantization=model["quantization"],
            adapters=read_adapters(model),
            gradient_checkpointing=model["gradient_checkpointing"],
            dequantize=model["dequantize"],
            fused_lora=model["fused_lora"],
            optimizer=model["optimizer"],
            precision="32-true" if precision is None else str(precision),  # Lightning's default
            sharded=self.plain["trainer"]["strategy"] == FSDP,
        )


def read_adapters(model: Mapping[str, Any]) -> Adapters | None:
    """Return the adapters of a resolved config's ``model``.

    Raises:
        RequestError: If ``lora`` and ``peft`` are both given.
    """
    lora = model["lora"]
    return adapters_of(None if lora is None else Lora(**lora), model["peft"])


def _written(share: Any) -> str:
    """Return a share as part of a name: ``1/16``, or ``500 rows``."""
    if isinstance(share, Mapping):
        return " ".join(f"{amount} {unit}" for unit, amount in share.items())
    return str(share)


def find_run_logger(loggers: Any) -> Any:
    """Return the entry of ``trainer.logger`` that is a ``RunLogger``, alone or in a list.

    Raises:
        RequestError: If there is not exactly one.
    """
    entries = loggers if isinstance(loggers, list) else [loggers]
    found = [
        entry
        for entry in entries
        if isinstance(entry, Namespace | Mapping)
        and str(entry.get("class_path", "")).endswith("RunLogger")
    ]
    if len(found) != 1:
        raise RequestError(NO_LOGGER)
    return found[0]
