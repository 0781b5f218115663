"""Check the ranges of config values, at parsing and in the schema."""

import dataclasses
import inspect
import math
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_lab.config.ranges import described
from sft_lab.config.signatures import argument_types
from sft_lab.errors import RequestError
from sft_lab.launch.parser import GROUPS, parse
from sft_lab.report.sections import QuestionSection
from sft_lab.runs.logger import RunLogger
from sft_lab.study.design import StudyDesign

DMT = "--config=configs/world/dmt.yaml"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed_everything", "-1", "must be in [0, 4294967295], got -1"),
        ("seed_everything", str(2**40), f"must be in [0, 4294967295], got {2**40}"),
        ("seed_everything", "true", "must be an integer, in [0, 4294967295], got True"),
        ("trainer.log_every_n_steps", "-1", "must be 0 or more, or null, got -1"),
        ("trainer.gradient_clip_val", "-1", "must be 0 or more and finite, or null, got -1"),
        ("trainer.gradient_clip_val", ".nan", "must be 0 or more and finite, or null, got nan"),
        ("model.weight_decay", "-1", "must be 0 or more and finite, got -1"),
        ("model.lora.r", "0", "must be 1 or more, got 0"),
        ("model.lora.lora_alpha", "0", "must be 1 or more, got 0"),
        ("model.lora.lora_dropout", "1.0", "must be in [0, 1), got 1.0"),
        ("corpus.max_length", "1", "must be 2 or more, got 1"),
        ("corpus.val_rows", "-1", "must be 0 or more, got -1"),
        ("corpus.sources.math.max_dropped", "2", "must be in [0, 1], got 2"),
        ("corpus.sources.math.near_duplicates", "0", "must be in (0, 1], or null, got 0"),
        ("checkpoint.every_n_steps", "0", "must be 1 or more, got 0"),
        ("evaluation.batch_size", "0", "must be 1 or more, got 0"),
        ("data.num_workers", "100000", "must be in [0, 512], got 100000"),
        ("data.stages.generalize.lr", "-1", "must be in (0, 1], got -1"),
        ("data.stages.generalize.lr", ".nan", "must be in (0, 1], got nan"),
        ("data.stages.generalize.lr", ".inf", "must be in (0, 1], got inf"),
        ("data.stages.generalize.lr", "1e9", "must be in (0, 1], got 1000000000.0"),
        (
            "data.stages.generalize.epochs",
            "1.5",
            "must be an integer, in [1, 10000], or null, got 1.5",
        ),
        ("data.stages.generalize.max_steps", "-1", "must be in [1, 100000000], or null, got -1"),
        ("data.stages.generalize.temperature", "0", "must be above 0 and finite, or null, got 0"),
        ("data.stages.generalize.warmup_ratio", "1.1", "must be in [0, 1], got 1.1"),
        (
            "evaluation.benchmarks.world_code.init_args.memory_mb",
            "8",
            "must be 64 or more, got 8",
        ),
        (
            "evaluation.benchmarks.world_math.init_args.num_examples",
            "0",
            "must be 1 or more, or null, got 0",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(
    key: str, value: str, message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        parse([DMT, f"--{key}={value}"])
    assert str(refused.value) == f"--{key} {message}."


def test_a_range_inside_a_value_given_as_a_whole_is_checked(tmp_path: Path) -> None:
    guard = "{stage: generalize, min_retention: {world_math/format_free: 90}}"
    with pytest.raises(
        RequestError, match=r"min_retention\.world_math/format_free must be in \(0, 1\], got 90"
    ):
        parse([DMT, f"--data.guard={guard}"])
    file = tmp_path / "hot.yaml"
    file.write_text("evaluation:\n  decoding:\n    world_math: {temperature: -1}\n")
    with pytest.raises(RequestError) as refused:
        parse([DMT, f"--config={file}"])
    assert str(refused.value) == (
        f"{file}, line 3: evaluation.decoding.world_math.temperature must be 0 or more and "
        "finite, got -1."
    )


UNBOUNDED = {
    ("HarnessTask", "scale"),
    ("Axis", "values"),
    ("StudyDesign", "fractions"),
    ("StudyDesign", "shares"),
    ("EvaluationSuite", "budget"),  # parse_budget reads it
}
"""Arguments of which any number is right, or which are read by a parser of their own."""


def numeric_arguments() -> Iterator[tuple[str, str, Any]]:
    """Yield the class, name and type of every numeric argument that a config can set."""
    seen: set[Any] = {QuestionSection}  # the report builds it, no config
    todo: list[Any] = [*GROUPS.values(), StudyDesign, RunLogger]
    while todo:
        owner = todo.pop()
        if owner in seen or not owner.__module__.startswith("sft_lab."):
            continue
        seen.add(owner)
        if not dataclasses.is_dataclass(owner):
            todo += owner.__subclasses__()
        known = inspect.signature(owner).parameters
        for name, hint in argument_types(owner).items():
            if name in known:
                parts = list(leaves(hint))
                todo += [part for part in parts if isinstance(part, type)]
                if int in parts or float in parts:
                    yield owner.__name__, name, hint


def leaves(hint: Any) -> Iterator[Any]:
    """Yield the types inside a type; an annotated one is a leaf."""
    if typing.get_origin(hint) in (typing.Annotated, typing.Literal) or not typing.get_args(hint):
        yield hint
    else:
        for part in typing.get_args(hint):
            yield from leaves(part)


def test_every_numeric_argument_of_a_config_has_a_range() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
    try:
        from config_schema import import_classes  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    import_classes()
    unbounded = {(owner, name) for owner, name, _ in numeric_arguments()}
    assert unbounded <= UNBOUNDED


def test_described_ranges_name_both_ends() -> None:
    from typing import Annotated

    from annotated_types import Ge, Gt, Le, Lt

    assert described(Annotated[float, Gt(0.5), Lt(1)]) == "a number, in (0.5, 1)"
    assert described(Annotated[int, Ge(0), Le(8)], 9) == "in [0, 8]"
    assert described(Annotated[float, Ge(0), Lt(math.inf)], -1) == "0 or more and finite"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data.order.class_path=no.Order"],
            "--data.order.class_path: data.order: cannot import no.Order: No module named 'no'.",
        ),
        (
            ["--evaluation.engine=sft_lab.evaluation.generation.Ech"],
            "--evaluation.engine: cannot import sft_lab.evaluation.generation.Ech: module "
            "'sft_lab.evaluation.generation' has no attribute 'Ech'.",
        ),
        (
            ["--evaluation.benchmarks.x=sft_lab.evaluation.benchmarks.gsm8k.GSM8K"],
            "--evaluation.benchmarks.x: evaluation.benchmarks.x.init_args needs path, "
            "max_new_tokens.",
        ),
        (
            ["--data.stages.third={mixture: {math: 1}, epochs: 1}"],
            "--data.stages.third needs lr.",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_named_with_the_flag_that_gave_it(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        parse([DMT, *arguments])
    assert str(refused.value) == message
