"""Write docs/configuration_reference.md from the signatures of what a config configures.

    python docs/configuration_reference.py

Names, types and defaults come from the classes, descriptions from their docstrings.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser

from sft_lab.config.ranges import described
from sft_lab.config.signatures import argument_types
from sft_lab.launch.parser import FOLLOWING_KEYS, GROUPS, MANAGED_TRAINER_ARGS
from sft_lab.runs.logger import RunLogger

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """\
# Config keys

Every key of a run's config, from the signatures of the classes that take them. Values are written
in YAML or given as `--group.key value`; [Configuration](configuration.md) says how files and flags
are combined. A key without a default is required. `configs/schema/` holds the same for editors.

| top level | meaning |
|---|---|
| `seed_everything` | seed of everything random in a run |
| `ckpt_path` | `last`, or a checkpoint file to resume from or to score |
| `from` | `RUN@STAGE`, to start a new run from the end of another run's stage |
"""


def own_subclasses(owner: type) -> list[type]:
    """Return the package's public classes that derive from a class, by name."""
    found, todo = set(), [owner]
    while todo:
        for child in todo.pop().__subclasses__():
            todo.append(child)
            if child.__module__.startswith("sft_lab.") and not inspect.isabstract(child):
                found.add(child)
    return sorted(found, key=lambda c: (c.__module__, c.__name__))


def classes_in(hint: Any) -> Iterator[type]:
    """Yield the package's classes that a type mentions."""
    if typing.get_origin(hint) is not None or isinstance(hint, types.UnionType):
        for part in typing.get_args(hint):
            yield from classes_in(part)
    elif inspect.isclass(hint) and hint.__module__.startswith("sft_lab."):
        yield hint


def shown_type(hint: Any) -> str:
    """Return a type as a reader of YAML needs it."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return described(hint).removeprefix("an ").removeprefix("a ")
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(shown_type(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "`null`"
    if inspect.isclass(hint) and hint.__module__.startswith("sft_lab."):
        return f"[{hint.__name__}](#{anchor(hint)})"
    if origin is not None:
        parts = ", ".join(shown_type(part) for part in typing.get_args(hint) if part is not ...)
        return f"{origin.__name__} of {parts}"
    return getattr(hint, "__name__", str(hint))


def shown_default(parameter: inspect.Parameter, owner: type) -> str:
    """Return a parameter's default as YAML, or a dash where it is required."""
    value = parameter.default
    if dataclasses.is_dataclass(owner):
        field = next(f for f in dataclasses.fields(owner) if f.name == parameter.name)
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    if dataclasses.is_dataclass(value):
        return f"a {type(value).__name__} with its defaults"
    return f"`{value}`"


def anchor(owner: type) -> str:
    """Return the anchor of a class's section."""
    return owner.__name__.lower()


def section(heading: str, owner: type) -> tuple[str, list[type]]:
    """Return a class's section and the classes that its arguments mention."""
    documented = docstring_parser.parse(inspect.getdoc(owner) or "", docstring_parser.Style.GOOGLE)
    texts = {entry.arg_name: entry.description or "" for entry in documented.params}
    # What a subclass passes on is described where it is declared.
    for parent in owner.__mro__[1:]:
        if parent.__module__.startswith("sft_lab."):
            inherited = docstring_parser.parse(
                inspect.getdoc(parent) or "", docstring_parser.Style.GOOGLE
            )
            for entry in inherited.params:
                texts.setdefault(entry.arg_name, entry.description or "")
    hints = argument_types(owner)
    lines = [heading, "", f"`{owner.__module__}.{owner.__qualname__}`"]
    if documented.short_description:
        lines += ["", documented.short_description]
    if documented.long_description:
        lines += ["", documented.long_description]
    header = ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    rows: list[str] = []
    mentioned: list[type] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        hint = hints.get(name, Any)
        if hint in GROUPS.values() or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue  # a group of its own
        key = f"{heading.removeprefix('## ')}.{name}"
        if key in FOLLOWING_KEYS:
            continue  # no config sets it
        mentioned += classes_in(hint)
        meaning = " ".join(texts.get(name, "").split())
        default = shown_default(parameter, owner)
        if key == "corpus.tokenizer":
            default = "`model.base`"
        cells = (f"`{name}`", shown_type(hint), default, meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines + (header + rows if rows else [])) + "\n", mentioned


def trainer_section() -> str:
    """Return the section of Lightning's Trainer, whose arguments are not ours to describe."""
    lines = [
        "## trainer",
        "",
        "`lightning.Trainer`: any of its arguments, except those that follow from other keys:",
        "",
        "| key | set instead |",
        "|---|---|",
        *(f"| `{key}` | `{instead}` |" for key, instead in sorted(MANAGED_TRAINER_ARGS.items())),
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page: the groups, and below them every class that they mention."""
    for package in ("evaluation", "training", "data"):  # where class paths of configs lead
        root = importlib.import_module(f"sft_lab.{package}")
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if not module.name.endswith(("sandbox.program", "sandbox.worker")):
                importlib.import_module(module.name)
    parts = [INTRODUCTION, trainer_section()]
    todo: list[type] = [RunLogger]
    seen: set[type] = set()
    for group, owner in GROUPS.items():
        if group == "trainer":
            continue
        text, mentioned = section(f"## {group}", owner)
        parts.append(text)
        todo += mentioned
        seen.add(owner)
    parts.append("## Classes in configs\n")
    while todo:
        owner = todo.pop(0)
        if owner in seen:
            continue
        seen.add(owner)
        children = own_subclasses(owner)
        if inspect.isabstract(owner) or (children and not dataclasses.is_dataclass(owner)):
            todo = children + todo
        text, mentioned = section(f"### {owner.__name__}", owner)
        parts.append(text)
        todo += mentioned
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
