"""Configs: files and overrides merged key by key into one, each value's origin kept for errors."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.errors import RequestError
from sft_lab.paths import find_config


def best_precision() -> str:
    """Return bf16-mixed where the machine computes bf16 natively, else 32-true.

    A CPU without AVX512-BF16 or AMX emulates bf16 fifteen times slower than it computes float32.
    """
    import torch  # seconds to import, and most configs are read without it

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def best_optimizer() -> str:
    """Return paged_adamw_8bit where there is CUDA, else adamw."""
    import torch

    return "paged_adamw_8bit" if torch.cuda.is_available() else "adamw"


OmegaConf.register_resolver("best_precision", best_precision)
OmegaConf.register_resolver("best_optimizer", best_optimizer)

TRAINED_KEYS = ("seed_everything", "model", "corpus", "data", "evaluation")
TRAINED_TRAINER_KEYS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
"""What decides a run's numbers; logger, checkpoints and progress may change under a resumed run."""


@dataclass
class Composed:
    """A merged config, not yet resolved, and where each of its values was written.

    Attributes:
        config: The merged values.
        origins: ``file, line n`` by dotted key.
    """

    config: DictConfig = field(default_factory=lambda: OmegaConf.create({}))
    origins: dict[str, str] = field(default_factory=dict)

    def merge_file(self, path: str) -> None:
        """Merge a config file over what is there.

        A group that is a file name, ``trainer: ../trainer.yaml``, stands for that file's content;
        the name is relative to the file that says it. A key may be dotted, ``data.k: 1/4``.

        Raises:
            RequestError: If a file is missing or is not YAML.
        """
        file = find_config(path)
        values, origins = _read(file)
        for key, value in values.items():
            self._set(key, value, file.parent, origins[key])
        self.origins |= origins

    def override(self, key: str, value: str) -> None:
        """Set one dotted key, as the command line does; what stands beside it stays.

        Raises:
            RequestError: If the value is not YAML, or the key points behind the end of a list.
        """
        where = f"--{key}"
        self.origins = {k: v for k, v in self.origins.items() if not k.startswith(f"{key}.")}
        self.origins[key] = where
        self._set(key, _parse(value, where), Path(), where)

    def _set(self, key: str, value: Any, folder: Path, where: str) -> None:
        if "." not in key and isinstance(value, list) and any(map(_is_file, value)):
            for part in value:
                self._set(key, part, folder, where)
            return
        if "." not in key and _is_file(value):
            shared = folder / value
            if not shared.is_file():
                raise RequestError(
                    f"{where}: {key} refers to {value}, and there is no file {shared}."
                )
            value, origins = _read(shared)
            self.origins |= {f"{key}.{inner}": origin for inner, origin in origins.items()}
        for part in reversed(key.split(".")):
            value = {part: value}
        try:
            merged = _merged(OmegaConf.to_container(self.config), value)
            self.config = OmegaConf.create(merged)
        except (IndexError, OmegaConfBaseException) as fault:
            reason = str(fault).splitlines()[0]
            raise RequestError(f"{where}: {key} cannot be set: {reason}.") from fault

    def resolved(self) -> dict[str, Any]:
        """Return plain values with every ``${...}`` filled in.

        Raises:
            RequestError: If an interpolation points to nothing.
        """
        try:
            plain = OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as fault:
            key = str(getattr(fault, "full_key", "") or "")
            reason = str(fault).splitlines()[0].rstrip(".")
            raise RequestError(f"{self.origin(key)}{key}: {reason}.") from fault
        return {str(key): value for key, value in cast(dict[Any, Any], plain).items()}

    def origin(self, key: str) -> str:
        """Return "file, line n: " of a key or the nearest above it; nothing for a default."""
        while key:
            if key in self.origins:
                return f"{self.origins[key]}: "
            key = key.rpartition(".")[0]
        return ""


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def _merged(old: Any, new: Any) -> Any:
    """Return ``new`` laid over ``old`` key by key; keys of digits count the items of a list."""
    if isinstance(old, list) and isinstance(new, Mapping) and all(str(k).isdigit() for k in new):
        items = list(old)
        for index, value in new.items():
            items[int(index)] = _merged(items[int(index)], value)
        return items
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or _is_other_kind(old, new):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _is_other_kind(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    """Say whether ``new`` replaces ``old``: {tokens: n} after {rows: n}, another class."""
    shares = ({"rows"}, {"tokens"})
    if set(old) in shares and set(new) in shares:
        return set(old) != set(new)
    return "class_path" in new and new["class_path"] != old.get("class_path")


def _parse(text: str, where: str) -> Any:
    if text.startswith("${"):
        return text
    try:
        # OmegaConf's own reading of YAML, in which 1e-3 is a number.
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(f"value: {text}")))[
            "value"
        ]
    except (yaml.YAMLError, OmegaConfBaseException) as fault:
        raise RequestError(f"{where}: {text!r} is not a YAML value.") from fault


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        content = file.read_text(encoding="utf-8")
        node = yaml.compose(content)
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise RequestError(f"{file}: a config holds keys and values, got {content[:40]!r}.")
        loaded = cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.create(content)))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        reason = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise RequestError(f"{where}: not YAML: {reason}.") from fault
    return {str(key): value for key, value in loaded.items()}, dict(_origins(node, file))


def _origins(node: Any, file: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, f"{file}, line {key.start_mark.line + 1}"
            yield from _origins(value, file, f"{name}.")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that decides a run's numbers."""
    chosen = {key: config[key] for key in TRAINED_KEYS if key in config}
    if isinstance(chosen.get("evaluation"), Mapping):
        # Where a server is may change under a resumed run.
        chosen["evaluation"] = {k: v for k, v in chosen["evaluation"].items() if k != "vllm"}
    trainer = config.get("trainer", {})
    chosen["trainer"] = {key: trainer[key] for key in TRAINED_TRAINER_KEYS if key in trainer}
    plain: dict[str, Any] = json.loads(json.dumps(chosen, default=str))
    return plain


def digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config's identity, in which only the order of stages matters."""
    content = [identity(config), list(config["data"]["stages"])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys in which two configs differ, with both values or None."""
    changes: list[tuple[str, Any, Any]] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append((f"{prefix}{key}", before, after))
    return changes


def contradiction(
    old: Mapping[str, Any], new: Mapping[str, Any], num_stages: int
) -> tuple[str, Any, Any] | None:
    """Return the first key in which a config contradicts what a run has trained.

    Args:
        old: Identity of the config that the run was trained with.
        new: Identity of the config that is asked for.
        num_stages: How many stages of the run count; those behind them may differ.

    Returns:
        The dotted key with both values; for other stages than the run's, ``data.stages`` and their
        names in order. None where nothing contradicts.
    """
    names = list(old["data"]["stages"])[:num_stages]
    asked = list(new["data"]["stages"])[:num_stages]
    if asked != names:
        return "data.stages", ", ".join(names), ", ".join(asked)
    guarded = {guard["stage"] for config in (old, new) if (guard := config["data"].get("guard"))}
    # k acts only through the shares of stages, which are compared resolved.
    free = ("data.k.",) if guarded.intersection(names) else ("data.k.", "data.guard.")
    for key, before, after in changed_keys(old, new):
        stage = key.split(".")[2] if key.startswith("data.stages.") else None
        if not f"{key}.".startswith(free) and (stage is None or stage in names):
            return key, before, after
    return None


def check_resumable(old: Mapping[str, Any], new: Mapping[str, Any], *, started_stages: int) -> None:
    """Refuse to go on with a run under a config that contradicts what it has trained.

    Args:
        old: Identity of the config that the run was trained with.
        new: Identity of the config that is asked for.
        started_stages: How many stages have trained a step; those behind them may still be edited.

    Raises:
        RequestError: Naming the first key that changed.
    """
    found = contradiction(old, new, started_stages)
    if found is None:
        return
    key, before, after = found
    if key == "data.stages":
        raise RequestError(
            f"data.stages: the run has trained {before} in this order; stages behind "
            "these may change, these may not. Put them back, or start anew without --ckpt_path."
        )
    stage = key.split(".")[2] if key.startswith("data.stages.") else None
    what = f"stage '{stage}' has been trained with" if stage else "the run was started with"
    raise RequestError(
        f"{key}: {what} {before}, the config now says {after}. "
        "Put it back, or start anew without --ckpt_path."
    )
