"""Compare what is read from the source of classes with the classes themselves."""

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_lab.config.signatures import Unimported, arguments_of, imported, is_dataclass, unimported
from sft_lab.launch.early import group_types
from sft_lab.launch.keys import GROUP_CLASSES, TRAINER_RANGES

SCHEMA = Path(__file__).parents[2] / "configs/schema/run.json"


def class_paths(schema: Any) -> Iterator[str]:
    """Yield the classes of the package that configs may name, as the schema lists them."""
    if isinstance(schema, list):
        for part in schema:
            yield from class_paths(part)
    elif isinstance(schema, dict):
        path = schema.get("class_path")
        if isinstance(path, dict) and "const" in path:
            yield path["const"]
        for part in schema.values():
            yield from class_paths(part)


OWN = sorted(set(class_paths(json.loads(SCHEMA.read_text()))))


def described(hint: Any) -> Any:
    """Return a type with every class by its path, whether it has been imported or not."""
    if hint is None or hint is type(None) or isinstance(hint, str):
        return str(hint)
    if isinstance(hint, type) and issubclass(hint, Unimported):
        return hint.path
    arguments = typing.get_args(hint)
    if arguments:
        origin = typing.get_origin(hint)
        if typing.get_origin(hint) is typing.Annotated:
            return (described(arguments[0]), repr(hint.__metadata__))
        if origin in (typing.Union, types.UnionType):
            return sorted(repr(described(part)) for part in arguments)
        return (str(origin), *(described(part) for part in arguments))
    return f"{hint.__module__}.{hint.__qualname__}" if inspect.isclass(hint) else repr(hint)


@pytest.mark.parametrize("path", [*GROUP_CLASSES.values(), *OWN])
def test_arguments_read_from_source_are_those_of_the_class(path: str) -> None:
    groups = {held.path: held for held in group_types().values()}
    read = arguments_of(groups.get(path) or unimported(path))
    real = arguments_of(imported(path))
    assert read is not None
    assert real is not None
    assert list(read.hints) == list(real.hints)
    assert read.required == real.required
    assert read.takes_any == real.takes_any
    for name, hint in read.hints.items():
        if hint is not None or path.startswith("sft_lab."):
            assert repr(described(hint)) == repr(described(real.hints[name])), name


def test_arguments_of_peft_s_configs_read_from_source_are_those_of_the_classes() -> None:
    import peft

    configs = [name for name in dir(peft) if name.endswith("Config")]
    assert {"LoraConfig", "IA3Config", "OFTConfig"} <= set(configs)
    for name in configs:
        read, real = arguments_of(unimported(f"peft.{name}")), arguments_of(getattr(peft, name))
        assert read is not None
        assert real is not None
        assert (list(read.hints), read.required) == (list(real.hints), real.required), name
        for argument, hint in read.hints.items():
            assert repr(described(hint)) == repr(described(real.hints[argument])), argument


def test_ranges_of_other_libraries_name_arguments_that_exist() -> None:
    real = arguments_of(imported(GROUP_CLASSES["trainer"]))
    assert real is not None
    assert {key.removeprefix("trainer.") for key in TRAINER_RANGES} <= set(real.hints)


def test_classes_of_others_are_not_judged_by_their_source() -> None:
    assert unimported("lightning.pytorch.callbacks.Timer") is None
    assert unimported("sft_lab.no.Such") is None
    assert not is_dataclass(unimported("sft_lab.evaluation.benchmarks.gsm8k.GSM8K"))
