"""Check the kwargs of instructions by their kinds."""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NewType

import regex

from sft_lab.evaluation.benchmarks.ifeval.language import known_languages

Relation = Literal["less than", "at least"]
Letter = NewType("Letter", str)
Pattern = NewType("Pattern", str)
Language = NewType("Language", str)


def check_kwargs(check: Callable[..., bool], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check the kwargs of an instruction, and return them without nulls.

    Args:
        check: The function of the instruction; it annotates its kwargs with their kinds.
        kwargs: The kwargs of a row, null for those of other instructions.

    Raises:
        ValueError: If one is missing, unknown or not of its kind. The official checker draws a
            missing or negative number, relation or phrase at random; here that is an error.
    """
    kinds = {
        name: parameter.annotation
        for name, parameter in inspect.signature(check).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    given = {name: _whole(value) for name, value in kwargs.items() if value is not None}
    for name, value in given.items():
        if name not in kinds:
            takes = ", ".join(kinds) if kinds else "none"
            raise ValueError(f"key '{name}' is unknown, got {_show(value)}. It takes: {takes}.")
    for name, kind in kinds.items():
        if name not in given:
            raise ValueError(f"key '{name}' is missing or null; it must be {_KINDS[kind][0]}.")
        wanted, fits = _KINDS[kind]
        if not fits(given[name]):
            raise ValueError(f"key '{name}' must be {wanted}, got {_show(given[name])}.")
    if "nth_paragraph" in given and not 1 <= given["nth_paragraph"] <= given["num_paragraphs"]:
        raise ValueError(
            f"key 'nth_paragraph' must be from 1 to num_paragraphs ({given['num_paragraphs']}), "
            f"got {given['nth_paragraph']}."
        )
    return given


def _whole(value: Any) -> Any:
    """Return 3.0 as 3: a column with gaps is read as floats, as in the Parquet copy on the hub."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        regex.compile(rf"\b{value}\b")
    except regex.error:
        return False
    return True


# Kind -> its name in errors, and the test of a value.
_KINDS: dict[object, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number of 0 or more", lambda value: type(value) is int and value >= 0),
    str: ("a string that is not blank", _is_text),
    Letter: ("one character", lambda value: _is_text(value) and len(value) == 1),
    Pattern: ("a regular expression", _is_pattern),
    list[Pattern]: (
        "a list of regular expressions",
        lambda value: isinstance(value, list) and value != [] and all(map(_is_pattern, value)),
    ),
    Language: (
        "the code of a language that langdetect knows, such as 'de'",
        lambda value: isinstance(value, str) and value in known_languages(),
    ),
    Relation: ("'less than' or 'at least'", lambda value: value in ("less than", "at least")),
}


def _show(value: object) -> str:
    return reprlib.repr(value)
