"""Decide whether two configs describe the same run."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sft_lab.errors import RequestError

TRAINED_KEYS = ("seed_everything", "model", "corpus", "data", "evaluation")


TRAINED_TRAINER_KEYS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
"""Keys that decide a run's numbers; logger, checkpoints and progress may change on resume."""


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
        num_stages: Stages of the run that count; later ones may differ.

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
    """Refuse to resume a run under a config that contradicts what it has trained.

    Args:
        old: Identity of the config that the run was trained with.
        new: Identity of the config that is asked for.
        started_stages: Stages that have trained a step; later ones may still be edited.

    Raises:
        RequestError: Naming the first key that changed.
    """
    found = contradiction(old, new, started_stages)
    if found is None:
        return
    key, before, after = found
    if key == "data.stages":
        raise RequestError(
            f"data.stages: the run has trained {before} in this order; only later stages may "
            "change. Restore these, or start a new run without --ckpt_path."
        )
    stage = key.split(".")[2] if key.startswith("data.stages.") else None
    what = f"stage '{stage}' has been trained with" if stage else "the run was started with"
    raise RequestError(
        f"{key}: {what} {before}, the config now says {after}. "
        "Restore it, or start a new run without --ckpt_path."
    )
