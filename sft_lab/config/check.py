"""Check a config's keys and numbers against the signatures that take them, before the parser does.

The parser would name the argument of a class, but neither its full key nor the nearest right one.
"""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jsonargparse.typing import get_registered_type

from sft_lab.config.compose import Composed
from sft_lab.config.kinds import alternatives, kind_fault, takes_class, takes_null
from sft_lab.config.ranges import range_fault
from sft_lab.config.signatures import Unimportable, arguments_of, imported, is_dataclass
from sft_lab.errors import RequestError, has_credentials

MLFLOW_CREDENTIALS = (
    "an address of MLflow must not include a user name, a password or a key, here or in "
    "MLFLOW_TRACKING_URI; export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN."
)

_MOST_SHOWN = 20  # known keys in an error
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""The keys of an object; the last one is for arguments that a class takes by ``**kwargs``."""


@dataclasses.dataclass(frozen=True)
class _Unknown:
    """The type of a key that no argument has, among the ``known`` ones."""

    known: list[str]


@dataclasses.dataclass(frozen=True)
class _Missing:
    """The type of an object that lacks arguments, by ``names``."""

    names: list[str]


def check_config(
    composed: Composed,
    groups: Mapping[str, Any],
    others: Mapping[str, Any],
    ranges: Mapping[str, Any] | None = None,
    class_at: Callable[[str], Any] = imported,
) -> None:
    """Refuse the first key that no argument has, number out of range, or address with a password.

    Args:
        composed: The config.
        groups: The class whose arguments a group holds, or the type of a group without a class.
        others: Types of top-level keys that are not groups.
        ranges: Types by dotted key, for arguments of other libraries, which declare no range.
        class_at: Finds the class of a class path, or what stands in for it, or None to pass it by.

    Raises:
        RequestError: Naming file, line and key, and the nearest right one, or the range.
    """
    resolved = composed.resolved()
    _check_credentials(resolved, composed)
    for key, value, hint in _Walk(class_at).config(resolved, groups, others):
        if isinstance(hint, _Unknown):
            raise RequestError(f"{composed.origin(key)}unknown key {key!r}; {_fix(key, hint)}")
        if isinstance(hint, _Missing):
            raise RequestError(f"{composed.where(key)} needs {', '.join(hint.names)}.")
        if isinstance(hint, Unimportable):
            raise RequestError(f"{composed.where(key)}: cannot import {value}: {hint.reason}.")
        if hint is dict and not isinstance(value, Mapping):
            raise RequestError(
                f"{composed.where(key)} takes keys, or the name of a YAML file, got "
                f"{'null' if value is None else value}."
            )
        if value is None and not takes_null(hint):
            raise RequestError(f"{composed.where(key)} needs a value, got null.")
        if allowed := range_fault(value, (ranges or {}).get(key, hint)):
            raise RequestError(f"{composed.where(key)} must be {allowed}, got {value}.")
        if value == "" and _is_class_path(alternatives(hint)):
            raise RequestError(f"{composed.where(key)} needs the path of a class, got ''.")
        if allowed := kind_fault(value, hint):
            raise RequestError(f"{composed.where(key)} must be {allowed}, got {value!r}.")
        if value is not None and (fault := _read_fault(value, hint)):
            raise RequestError(f"{composed.where(key)}: {fault}")


def _check_credentials(value: Any, composed: Composed, key: str = "") -> None:
    """Refuse addresses with a user name, a password or a key: a config is printed and recorded.

    Raises:
        RequestError: Naming the key, not the value.
    """
    if isinstance(value, Mapping | list):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, entry in entries:
            _check_credentials(entry, composed, f"{key}.{name}" if key else str(name))
        return
    if not isinstance(value, str):
        return
    above, _, name = key.rpartition(".")
    if has_credentials(value, needs_scheme=name not in ("tracking_uri", "base_url")):
        fault = "an address must not include a user name, a password or a key"
        if name == "tracking_uri":
            raise RequestError(f"{composed.where(key)}: {MLFLOW_CREDENTIALS}")
        if name == "base_url":
            raise RequestError(
                f"{composed.where(key)}: {fault}; name the variable that holds the key by "
                f"{above}.api_key_env."
            )
        raise RequestError(f"{composed.where(key)}: {fault}; leave them out.")


def _fix(key: str, unknown: _Unknown) -> str:
    *above, name = key.split(".")
    near = difflib.get_close_matches(name, unknown.known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {'.'.join([*above, near[0]])!r}?"
    shown = ", ".join(unknown.known[:_MOST_SHOWN])
    more = len(unknown.known) - _MOST_SHOWN
    return f"known here are {shown}{f' and {more} more' if more > 0 else ''}."


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Yields every key of a config with its value and type.

    Attributes:
        class_at: As in ``check_config``.
    """

    class_at: Callable[[str], Any]

    def config(
        self, config: Mapping[str, Any], groups: Mapping[str, Any], others: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any, Any]]:
        for key, value in config.items():
            if isinstance(groups.get(key), type):
                yield key, value, dict
                yield from self._class(key, value, groups[key], is_nested=False)
            elif key in groups or key in others:
                yield from self._type(key, value, groups.get(key, others.get(key)))
            else:
                yield key, value, _Unknown(list(dict.fromkeys([*groups, *others])))

    def _class(
        self, key: str, values: Any, owner: Any, *, is_nested: bool = True
    ) -> Iterator[tuple[str, Any, Any]]:
        if not isinstance(values, Mapping):
            return
        if "class_path" in values:
            for name in values:
                if name not in _CLASS_KEYS:
                    yield f"{key}.{name}", values[name], _Unknown(list(_CLASS_KEYS))
            path, values = values["class_path"], values.get("init_args", {})
            owner = self.class_at(str(path))
            if isinstance(owner, Unimportable):
                yield key, path, owner
            key = f"{key}.init_args"
            yield key, values, dict[str, Any]
            if not isinstance(owner, type):
                return
        arguments = arguments_of(owner)
        if arguments is None:
            return
        for name, value in values.items():
            if name in arguments.hints:
                yield from self._type(f"{key}.{name}", value, arguments.hints[name])
            elif not arguments.takes_any:
                yield f"{key}.{name}", value, _Unknown(list(arguments.hints))
        missing = [name for name in arguments.required if name not in values]
        if missing and is_nested:  # what a group lacks may be linked from another
            yield key, values, _Missing(missing)

    def _type(self, key: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
        yield key, value, hint
        parts = alternatives(hint)
        if isinstance(value, str) and "." in value and _is_class_path(parts):
            yield from self._class(key, {"class_path": value}, None)
        if isinstance(value, list):
            for part in parts:
                if typing.get_origin(part) in (list, tuple):
                    for index, entry in enumerate(value):
                        yield from self._type(f"{key}.{index}", entry, typing.get_args(part)[0])
            return
        if not isinstance(value, Mapping) or any(map(get_registered_type, parts)):
            return  # read from a value as a whole
        entries = next((part for part in parts if typing.get_origin(part) is dict), None)
        if entries is not None and "class_path" not in value:
            for name, entry in value.items():
                yield from self._type(f"{key}.{name}", entry, typing.get_args(entries)[1])
            return
        owner = next((part for part in parts if is_dataclass(part)), None)
        if "class_path" in value or owner is not None:
            yield from self._class(key, value, owner)
        elif any(map(takes_class, parts)):
            yield key, value, _Missing(["class_path"])


def _is_class_path(parts: Sequence[Any]) -> bool:
    """Return whether text that a dot is in must be a class path: no other text has one."""
    others = [part for part in parts if typing.get_origin(part) is not typing.Literal]
    return bool(others) and all(
        takes_class(part) or part is type(None) or typing.get_origin(part) in (list, tuple)
        for part in others
    )


def _read_fault(value: Any, hint: Any) -> str | None:
    """Return what is wrong with a value that a registered type, such as a share, reads whole."""
    kinds = [part for part in alternatives(hint) if part is not type(None)]
    reader = get_registered_type(kinds[0]) if len(kinds) == 1 else None
    if reader is None:
        return None
    try:
        reader.base_deserializer(value)
    except ValueError as fault:
        return str(fault)
    return None
