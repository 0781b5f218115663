"""Ranges of config values: annotated types for signatures, and the check that reads them."""

import math
import types
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Port = Annotated[int, Ge(1), Le(65535)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""A seed that NumPy takes as well."""
PositiveFloat = Annotated[float, Gt(0), Lt(math.inf)]
NonNegativeFloat = Annotated[float, Ge(0), Lt(math.inf)]
UnitInterval = Annotated[float, Ge(0), Le(1)]
OpenUnitInterval = Annotated[float, Gt(0), Lt(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
"""A part of a whole that is not empty."""
AnyYaml = Annotated[str, "any YAML value, as text"]


def range_fault(value: Any, hint: Any) -> str | None:
    """Return the values that a type allows, if the given one is out of its range; None if it fits.

    A value of another kind is left to the parser, where the type allows more than numbers.

    >>> range_fault(0, PositiveInt | None)
    '1 or more, or null'
    >>> range_fault(0.5, PositiveInt)
    'an integer, 1 or more'
    >>> range_fault(1.5, UnitInterval), range_fault(0.5, UnitInterval), range_fault("x", str)
    ('in [0, 1]', None, None)
    """
    alternatives = _alternatives(hint)
    if literals := [part for part in alternatives if typing.get_origin(part) is Literal]:
        return _literal_fault(value, literals, alternatives)
    ranges = [part for part in alternatives if _bounds(part)]
    others = [part for part in alternatives if part not in ranges and part is not type(None)]
    if not ranges or (value is None and type(None) in alternatives):
        return None
    number = _number(value)
    if number is None and others:
        return None
    if number is not None and any(_fits(number, part) for part in ranges):
        return None
    allowed = " or ".join(described(part, number) for part in ranges)
    return f"{allowed}, or null" if type(None) in alternatives else allowed


def schema_bounds(hint: Any) -> dict[str, float]:
    """Return a type's range in JSON schema's words; empty if it has none.

    >>> schema_bounds(PositiveFloat), schema_bounds(UnitInterval | None), schema_bounds(int)
    ({'exclusiveMinimum': 0}, {'minimum': 0, 'maximum': 1}, {})
    """
    words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    ranges = [bounds for part in _alternatives(hint) if (bounds := _bounds(part))]
    if len(ranges) != 1:
        return {}
    return {words[word]: limit for word, limit in ranges[0].items() if math.isfinite(limit)}


def _literal_fault(value: Any, literals: list[Any], alternatives: tuple[Any, ...]) -> str | None:
    """Return the words that a type allows, if the value is another one.

    >>> range_fault("foo", Literal["fresh", "keep"]), range_fault("keep", Literal["fresh", "keep"])
    ('fresh or keep', None)
    """
    words = [word for part in literals for word in typing.get_args(part)]
    others = [part for part in alternatives if part not in literals and part is not type(None)]
    if not isinstance(value, str) or value in map(str, words) or (others and "." in value):
        return None
    allowed = [*map(str, dict.fromkeys(words)), *(["a class path"] if others else [])]
    return f"{', '.join(allowed[:-1])} or {allowed[-1]}" if allowed[1:] else allowed[0]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _bounds(hint: Any) -> dict[str, float]:
    """Return the limits of an annotated number: ``{"ge": 1}``."""
    if typing.get_origin(hint) is not Annotated:
        return {}
    found: dict[str, float] = {}
    for part in hint.__metadata__:
        if isinstance(part, Ge | Gt | Le | Lt):
            found |= {name: getattr(part, name) for name in part.__dataclass_fields__}
    return found


def _number(value: Any) -> float | None:
    """Return a value as a number; None for text that is none, truth values and containers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _fits(number: float, hint: Any) -> bool:
    if typing.get_args(hint)[0] is int and not number.is_integer():
        return False
    tests = {
        "ge": number.__ge__,
        "gt": number.__gt__,
        "le": number.__le__,
        "lt": number.__lt__,
    }
    return all(tests[word](float(limit)) for word, limit in _bounds(hint).items())


def described(hint: Any, number: float | None = None) -> str:
    """Return the range of an annotated number in words; its kind is left out where a number has it.

    >>> described(PositiveInt), described(PositiveInt, 0), described(PositiveFloat)
    ('an integer, 1 or more', '1 or more', 'a number, above 0 and finite')
    """
    bounds = _bounds(hint)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    is_int = typing.get_args(hint)[0] is int
    is_kind = number is not None and (not is_int or float(number).is_integer())
    kind = "" if is_kind else "an integer, " if is_int else "a number, "
    if low is not None and high is not None and math.isfinite(high):
        return f"{kind}in {'[('['gt' in bounds]}{low:g}, {high:.10g}{'])'['lt' in bounds]}"
    finite = " and finite" if high is not None else ""
    return f"{kind}above {low:g}{finite}" if "gt" in bounds else f"{kind}{low:g} or more{finite}"
