"""Finds a key that nothing takes, before the parser does: by name, with the nearest right one."""

import dataclasses
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse.typing import get_registered_type

from sft_lab.config.compose import Composed
from sft_lab.errors import RequestError


def check_keys(composed: Composed, groups: Mapping[str, Any], others: list[str]) -> None:
    """Refuse the first key of a config that no argument has.

    Args:
        composed: The config.
        groups: The class whose arguments a group holds, or the type of a group without a class.
        others: Top-level keys that are not groups.

    Raises:
        RequestError: Naming file, line, key and the nearest right one.
    """
    config = composed.resolved()
    for key, known in _unknown(config, groups, others):
        *above, name = key.split(".")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        fix = (
            f"did you mean {'.'.join([*above, near[0]])!r}?"
            if near
            else f"known here are {', '.join(known)}."
        )
        raise RequestError(f"{composed.origin(key)}unknown key {key!r}; {fix}")


def _unknown(
    config: Mapping[str, Any], groups: Mapping[str, Any], others: list[str]
) -> Iterator[tuple[str, list[str]]]:
    for key, value in config.items():
        if key in groups:
            is_class = isinstance(groups[key], type)
            unknown = _unknown_in_class if is_class else _unknown_in_type
            yield from unknown(key, value, groups[key])
        elif key not in others:
            yield key, list(dict.fromkeys([*groups, *others]))


def _unknown_in_class(key: str, values: Any, owner: Any) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(values, Mapping):
        return  # a wrong type, which the parser words well
    if "class_path" in values:
        owner, values, key = (
            _class_at(values["class_path"]),
            values.get("init_args"),
            f"{key}.init_args",
        )
        if owner is None or not isinstance(values, Mapping):
            return
    parameters = inspect.signature(owner).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    hints = typing.get_type_hints(owner if dataclasses.is_dataclass(owner) else owner.__init__)
    for name, value in values.items():
        if name not in parameters:
            yield f"{key}.{name}", list(parameters)
        else:
            yield from _unknown_in_type(f"{key}.{name}", value, hints.get(name))


def _unknown_in_type(key: str, value: Any, hint: Any) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(value, Mapping):
        return
    if any(get_registered_type(part) for part in (hint, *typing.get_args(hint))):
        return  # read from a value as a whole
    if typing.get_origin(hint) is dict:
        for name, entry in value.items():
            yield from _unknown_in_type(f"{key}.{name}", entry, typing.get_args(hint)[1])
        return
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(
            (part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)), None
        )
    if "class_path" in value or dataclasses.is_dataclass(hint):
        yield from _unknown_in_class(key, value, hint)


def _class_at(path: Any) -> Any:
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None  # the parser reports the unknown class
