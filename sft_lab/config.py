"""Configs: several files and overrides merged key by key into one, each value's origin kept for errors."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.errors import RequestError
from sft_lab.paths import find_config


def best_precision() -> str:
    """Return bf16-mixed where the machine computes bf16 natively, else 32-true.

    A CPU without AVX512-BF16 or AMX emulates bf16 fifteen times slower than it computes float32.
    """
    import torch  # noqa: PLC0415 - seconds to import, and most configs are read without it

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


OmegaConf.register_resolver("best_precision", best_precision)

TRAINED_KEYS = ("seed_everything", "model", "corpus", "data", "evaluation")
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

        A group that is a file name, ``trainer: ../trainer.yaml``, stands for that file's content; the
        name is relative to the file that says it.

        Raises:
            RequestError: If a file is missing or is not YAML.
        """
        file = find_config(path)
        values, origins = _read(file)
        for group, value in values.items():
            if isinstance(value, str) and value.endswith((".yaml", ".yml")):
                shared = file.parent / value
                if not shared.is_file():
                    raise RequestError(
                        f"{origins[group]}: {group} refers to {value}, and there is no file {shared}."
                    )
                group_values, group_origins = _read(shared)
                values[group] = group_values
                origins |= {f"{group}.{key}": origin for key, origin in group_origins.items()}
        self.config = DictConfig(OmegaConf.merge(self.config, values))
        self.origins |= origins

    def override(self, key: str, value: str) -> None:
        """Set one dotted key, as the command line does; what stands beside it stays."""
        OmegaConf.update(self.config, key, _parse(value, f"--{key}"), merge=True, force_add=True)
        self.origins[key] = f"--{key}"

    def resolved(self) -> dict[str, Any]:
        """Return plain values with every ``${...}`` filled in.

        Raises:
            RequestError: If an interpolation points to nothing.
        """
        try:
            plain = OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as fault:
            key = str(getattr(fault, "full_key", "") or "")
            raise RequestError(f"{self.origin(key)}{str(fault).splitlines()[0]}") from fault
        return {str(key): value for key, value in dict(plain).items()}  # type: ignore[arg-type]  # a mapping at the top

    def origin(self, key: str) -> str:
        """Return "file, line n: " of a key, or of the nearest key above it; nothing if it is a default."""
        while key:
            if key in self.origins:
                return f"{self.origins[key]}: "
            key = key.rpartition(".")[0]
        return ""


def _parse(text: str, where: str) -> Any:
    try:
        # OmegaConf's own reading of YAML, in which 1e-3 is a number.
        return OmegaConf.create(f"value: {text}")["value"] if not text.startswith("${") else text
    except (yaml.YAMLError, OmegaConfBaseException) as fault:
        raise RequestError(f"{where}: {text!r} is not a YAML value.") from fault


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        content = file.read_text(encoding="utf-8")
        node = yaml.compose(content)
        loaded = OmegaConf.to_container(OmegaConf.create(content)) if node is not None else {}
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise RequestError(
            f"{where}: not YAML: {getattr(fault, 'problem', None) or fault}."
        ) from fault
    if not isinstance(loaded, dict):
        raise RequestError(f"{file}: a config holds keys and values, got {str(content)[:40]!r}.")
    return {str(key): value for key, value in loaded.items()}, dict(_origins(node, file))


def _origins(node: Any, file: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, f"{file}, line {key.start_mark.line + 1}"
            yield from _origins(value, file, f"{name}.")


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that a misspelt one most likely means.

    >>> nearest_key("trainer.max_stepz", ["trainer.max_steps", "data.k"])
    'trainer.max_steps'
    """
    matches = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that decides a run's numbers."""
    chosen = {key: config[key] for key in TRAINED_KEYS if key in config}
    plain: dict[str, Any] = json.loads(json.dumps(chosen, default=str))
    return plain


def digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys in which two configs differ, with both values; None where one has none."""
    changes: list[tuple[str, Any, Any]] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append((f"{prefix}{key}", before, after))
    return changes


def check_resumable(old: Mapping[str, Any], new: Mapping[str, Any], *, started_stages: int) -> None:
    """Refuse to go on with a run under a config that contradicts what it has trained.

    Args:
        old: Identity of the config that the run was trained with.
        new: Identity of the config that is asked for.
        started_stages: How many stages have trained a step; those behind them may still be edited.

    Raises:
        RequestError: Naming the first key that changed.
    """
    old_stages = list(old["data"]["stages"])
    started = set(old_stages[:started_stages])
    if list(new["data"]["stages"])[:started_stages] != old_stages[:started_stages]:
        raise RequestError(
            f"data.stages: the run has trained {', '.join(old_stages[:started_stages])} in this order; "
            "stages behind these may change, these may not. Start a new run without --ckpt_path."
        )
    for key, before, after in changed_keys(old, new):
        stage = key.split(".")[2] if key.startswith("data.stages.") else None
        if stage is not None and stage not in started:
            continue
        if key == "data.k" and not any(
            changed.startswith(f"data.stages.{name}.")
            for changed, *_ in changed_keys(old, new)
            for name in started
        ):
            continue
        what = f"stage '{stage}' has been trained with" if stage else "the run was started with"
        raise RequestError(
            f"{key}: {what} {before}, the config now says {after}. Put it back, or start a new run without --ckpt_path."
        )
