"""What a config leaves to the machine it is read on, decided once, where a study is planned."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from sft_lab.config.compose import Composed
from sft_lab.study.design import written

_LEFT_TO_THE_MACHINE = re.compile(r"\$\{(oc\.env|best_precision|best_optimizer):")
_ENVIRONMENT = ("SFT_LAB_", "MLFLOW_", "HF_")


def decided_here(composed: Composed) -> tuple[str, ...]:
    """Return the values that another machine might resolve to others, as overrides.

    A run is known by the digest of the values found here, and must be trained with them anywhere.
    """
    raw, resolved = OmegaConf.to_container(composed.config), composed.resolved()
    return tuple(f"--{key}={as_override(value)}" for key, value in _decided(raw, resolved, ()))


def _decided(raw: Any, resolved: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _decided(value, resolved[key], (*path, str(key)))
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            yield from _decided(value, resolved[index], (*path, str(index)))
    elif isinstance(raw, str) and _LEFT_TO_THE_MACHINE.search(raw):
        yield ".".join(path), resolved


def as_override(value: Any) -> str:
    """Return a value as an override that is read as just this value, text as text.

    >>> as_override("rq1: math"), as_override(None)
    ('"rq1: math"', 'null')
    """
    if not isinstance(value, str):
        return written(value)
    return json.dumps(value.replace("${", "\\${"), ensure_ascii=False)


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that runs read besides: folders, the world, access to servers."""
    return {name: value for name, value in environment.items() if name.startswith(_ENVIRONMENT)}
