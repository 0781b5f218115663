"""Row filters: choose rows of a source by an expression over keys or by patterns in text."""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Undefined, meta, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override


class RowFilter:
    """Decide which rows of a source to keep.

    ``where`` is a Jinja2 expression over the keys of a row, such as ``correct == true and
    rating >= 4``, ``"python" in instruction|lower`` or ``conversations|length > 2``. ``row`` is
    the whole row, for keys that are not names: ``row["train-index"]``. A key that the row lacks is
    an error, so that a misspelt one cannot empty a source; ``rating is defined and rating >= 4``
    is for keys that some rows lack, ``rating is not none`` for nulls. The value must be true or
    false; anything else, such as the string "false", is ambiguous.

    The expression runs in Jinja2's sandbox: no access to underscore attributes, files or
    modules, no global functions, nothing random, no change of the row, no ``**`` and ``*`` with
    numbers only. The sandbox limits neither memory nor time, nor do regular expressions
    (``(a+)+$``): only use filters from people whose configs you would run.

    Args:
        where: Expression that is true of the rows to keep; None keeps all.
        include: Regular expressions, at least one of which must match in a message of the row; an
            empty list keeps all. They are case-sensitive unless they begin with ``(?i)``.
        exclude: Regular expressions, none of which may match in any message.

    Attributes:
        keys: The keys of a row that the expression names.

    Raises:
        ValueError: If an expression or pattern cannot be read.
    """

    def __init__(
        self, where: str | None = None, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.where = where
        self._expression = None if where is None else _expression(where)
        self.keys: set[str] = set() if where is None else _keys(where)
        self._include = _patterns("include", include)
        self._exclude = _patterns("exclude", exclude)

    def keeps_row(self, row: Mapping[str, Any]) -> bool:
        """Return whether ``where`` is true of a row.

        Raises:
            ValueError: If the row lacks a key of the expression, or the expression fails or gives
                neither true nor false; the caller adds file and line.
        """
        if self._expression is None:
            return True
        try:
            value = self._expression({"row": row, **row})
            if isinstance(value, Undefined):
                bool(value)  # raises, and names the key
        except UndefinedError as fault:
            keys = ", ".join(map(str, row))
            raise ValueError(
                f"where {self.where!r}: {fault}; the row has the keys {keys}."
            ) from fault
        except Exception as fault:  # whatever the expression raises
            raise ValueError(f"where {self.where!r}: {str(fault).rstrip('.')}.") from fault
        if not isinstance(value, bool):
            raise ValueError(
                f"where {self.where!r} must be true or false, got {reprlib.repr(value)}. "
                "Compare it with something, as in correct == true."
            )
        return value

    def reason(self, texts: Sequence[str]) -> str | None:
        """Return why the patterns leave out a row with these messages, or None if they keep it."""
        for pattern in self._exclude:
            if any(pattern.search(text) for text in texts):
                return f"matches exclude '{pattern.pattern}'"
        if self._include and not any(
            pattern.search(text) for pattern in self._include for text in texts
        ):
            return "matches no include"
        return None


class _RowEnvironment(ImmutableSandboxedEnvironment):
    """Expressions over rows: keys win over methods, no globals, no unbounded arithmetic."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined)
        self.globals.clear()  # a misspelt key must not resolve to a function
        del self.filters["random"]  # it would choose other rows in every run
        self.tests["none"] = _is_none

    @override
    def getattr(self, obj: Any, attribute: str) -> Any:
        # Jinja2 asks for the attribute first: `meta.items` would be a method of the mapping.
        return self.getitem(obj, attribute)

    @override
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not numbers:
            raise SecurityError(f"{operator} is not supported, only * between numbers")
        return super().call_binop(context, operator, left, right)


def _is_none(value: Any) -> bool:
    """Test for null; Jinja2's own test calls a key that is missing "not none"."""
    if isinstance(value, Undefined):
        bool(value)  # raises, and names the key
    return value is None


def _keys(where: str) -> set[str]:
    """Return the keys that an expression names, alone or as ``row["key"]``."""
    tree = _RowEnvironment().parse("{{ (" + where + ") }}")
    items = (
        item.arg.value
        for item in tree.find_all(nodes.Getitem)
        if isinstance(item.node, nodes.Name)
        and item.node.name == "row"
        and isinstance(item.arg, nodes.Const)
    )
    return meta.find_undeclared_variables(tree) | {str(item) for item in items}


def _expression(where: str) -> Callable[..., Any]:
    environment = _RowEnvironment()
    try:
        return environment.compile_expression(where, undefined_to_none=False)
    except Exception as fault:  # syntax errors, a RecursionError, numbers that are too long
        reason = str(fault).partition("\n")[0].rstrip(".")
        place = _place(where, environment)
        raise ValueError(f"where {where!r} is not an expression: {reason}{place}.") from fault


def _place(where: str, environment: _RowEnvironment) -> str:
    """Return the rest after the longest valid beginning; Jinja2 gives only a line."""
    for end in range(len(where) - 1, 0, -1):
        try:
            environment.compile_expression(where[:end])
        except Exception:  # as above
            continue
        return f", at position {end}: {reprlib.repr(where[end:])}"
    return ""


def _patterns(name: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
    if isinstance(patterns, str):
        raise ValueError(f"{name} must be a list of regular expressions, got {patterns!r}.")
    compiled = []
    for pattern in patterns:
        if not pattern:
            raise ValueError(f"{name} has the pattern '', which every text matches; leave it out.")
        try:
            compiled.append(re.compile(pattern))
        except (re.error, OverflowError, RecursionError) as fault:
            raise ValueError(f"{name} {pattern!r} is not a regular expression: {fault}.") from fault
    return compiled
