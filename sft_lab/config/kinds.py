"""Kinds of config values: what YAML may write for each type of a signature."""

import collections.abc
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from jsonargparse.typing import get_registered_type

from sft_lab.config.ranges import AnyYaml
from sft_lab.config.signatures import is_dataclass

_LISTS = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_WORDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "keys with values",
    type: "a class path",
}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a union allows; a type that is no union allows itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def kind_fault(value: Any, hint: Any) -> str | None:
    """Return the kinds of values that a type allows, if the given one is of another kind.

    >>> kind_fault("x", int | None), kind_fault(["x"], str), kind_fault(1, bool | dict[str, int])
    ('an integer, or null', 'text', 'true or false or keys with values')
    >>> kind_fault("1e-3", float), kind_fault(None, int), kind_fault(1, Any)
    (None, None, None)
    """
    parts = alternatives(hint)
    kinds = [_kind(part) for part in parts if part is not type(None)]
    if value is None or None in kinds or any(_is_of(value, kind) for kind in kinds):
        return None
    words = [
        _WORDS[kind] if kind in _WORDS else " or ".join(map(str, typing.get_args(kind)))
        for kind in dict.fromkeys(kinds)
    ]
    return " or ".join(words) + (", or null" if type(None) in parts else "")


def takes_null(hint: Any) -> bool:
    """Return whether a type allows null; one that is unknown, or an ``AnyYaml``, does."""
    return hint == AnyYaml or any(part in (None, Any, type(None)) for part in alternatives(hint))


def takes_class(hint: Any) -> bool:
    """Return whether values of a type are objects, given by ``class_path``."""
    return _kind(hint) is type


def _kind(hint: Any) -> Any:
    """Return the Python type that a value of a type has in YAML; None if that is unknown."""
    origin = typing.get_origin(hint)
    if hint in (Any, object):
        return None
    if origin is Literal:
        return hint
    if origin is Annotated:
        return None if hint == AnyYaml else typing.get_args(hint)[0]
    if origin in _LISTS or hint in _LISTS:
        return list
    if origin in _MAPPINGS or hint in _MAPPINGS:
        return dict
    if hint in _WORDS:
        return hint
    if not isinstance(hint, type):
        return None
    if issubclass(hint, PurePath):
        return str
    if get_registered_type(hint):
        return None
    return dict if is_dataclass(hint) else type


def _is_of(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool) or str(value).lower() in ("true", "false")
    if kind in (int, float):
        return not isinstance(value, bool) and _is_number(value)
    if kind is type:
        return isinstance(value, str | Mapping)
    if kind in (dict, list):
        return isinstance(value, Mapping if kind is dict else list | tuple)
    return isinstance(value, str) or (kind is not str and value in typing.get_args(kind))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, int)
    return True
