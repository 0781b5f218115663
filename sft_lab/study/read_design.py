"""Read a study's config and refuse invalid values before any run is planned."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from sft_lab.config.check import check_config
from sft_lab.config.compose import Composed, as_yaml
from sft_lab.errors import RequestError
from sft_lab.launch.parser import GROUPS, explain
from sft_lab.study.design import Arm, ReportDesign, Scalar, StudyDesign

MAX_CELLS = 10_000
MAX_ENTRIES = 1_000
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}"


def read_design(composed: Composed) -> StudyDesign:
    """Return a config's design, checked as far as possible without parsing any run's config.

    Raises:
        RequestError: If a value is wrong; names the key, its file and line, the value and the fix.
    """
    hints = get_type_hints(StudyDesign, include_extras=True)
    nested = {key: hints[key] for key in ("questions", "resources", "report")}
    check_config(composed, nested, hints)
    whole = composed.resolved()
    for key in ("name", "strategies", "questions"):
        if not whole.get(key):
            raise RequestError(
                f"{composed.where(key)}: required in a study; see configs/studies/rq4.yaml."
            )
    for key, entries in _lists(whole, ""):
        if len(entries) > MAX_ENTRIES:  # the parser takes time with the square of it
            raise RequestError(
                f"{composed.where(key)} has {len(entries):,} entries, and a list of a study at "
                f"most {MAX_ENTRIES:,}."
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", type=StudyDesign)
    try:
        parsed = parser.parse_object({"study": _with_sets_as_text(whole)})
        design: StudyDesign = parser.instantiate(parsed).study
    except ArgumentError as error:
        raise RequestError(explain(str(error).replace("study.", ""), composed)) from error
    for key, fault in _faults(design):
        raise RequestError(f"{composed.where(key)}{fault}")
    return design


def read_report_design(config: Mapping[str, Any]) -> ReportDesign:
    """Return the margin and the sections of a report from a study's recorded config.

    Raises:
        RequestError: If a class is not found or does not take its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--report", type=ReportDesign, default=ReportDesign())
    try:
        parsed = parser.parse_object({"report": config.get("report") or {}})
        report: ReportDesign = parser.instantiate(parsed).report
    except ArgumentError as fault:
        raise RequestError(f"the study's config: {fault}") from fault
    return report


def _with_sets_as_text(value: Any) -> Any:
    """Return a config in which every value under ``set`` is text, like a command-line override.

    The parser would otherwise instantiate the classes named there, which only the run may do.
    """
    if not isinstance(value, dict):
        return value
    return {
        key: {name: as_yaml(set_) for name, set_ in inner.items()}
        if key == "set" and isinstance(inner, dict)
        else _with_sets_as_text(inner)
        for key, inner in value.items()
    }


def _faults(design: StudyDesign) -> Iterator[tuple[str, str]]:
    """Yield wrong keys, each with the rest of its message."""
    if not re.fullmatch(_NAME, design.name):
        yield (
            "name",
            f" names a folder; use at most 60 letters, digits, _, - and . (neither first), "
            f"got {design.name!r}.",
        )
    yield from _faults_of_seeds("seeds", design.seeds)
    yield from _faults_of_set("set", design.set)
    if (count := _num_cells(design)) > MAX_CELLS:
        yield "questions", f" lay out {count:,} cells, and a study has at most {MAX_CELLS:,}."
    for name, question in design.questions.items():
        yield from _faults_of_name(f"questions.{name}", name)
        if not question.arms:
            yield f"questions.{name}.arms", " is empty; give at least one arm."
        yield from _faults_of_seeds(f"questions.{name}.seeds", question.seeds)
        for arm_name, arm in question.arms.items():
            yield from _faults_of_name(f"questions.{name}.arms.{arm_name}", arm_name)
            yield from _faults_of_arm(f"questions.{name}.arms.{arm_name}", arm)


def _lists(value: Any, key: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield every list of a config by its key."""
    if isinstance(value, list):
        yield key, value
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield from _lists(inner, f"{key}.{name}" if key else str(name))


def _num_cells(design: StudyDesign) -> int:
    """Return the cells of all grids, without laying them out."""
    return sum(
        math.prod(len(axis.values) for axis in arm.grid.values())
        * len(arm.seeds or question.seeds or design.seeds)
        for question in design.questions.values()
        for arm in question.arms.values()
    )


def _faults_of_seeds(key: str, seeds: Sequence[int] | None) -> Iterator[tuple[str, str]]:
    if seeds == []:
        yield key, " is empty; give at least one, such as [0]."
    elif seeds and len(set(seeds)) < len(seeds):
        yield key, f" must be distinct, got {seeds}."


def _faults_of_name(key: str, name: str) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(_NAME, name):
        yield (
            key,
            (
                " names files and anchors; use at most 60 letters, digits, _, - and . (neither "
                f"first), got {name!r}."
            ),
        )


def _faults_of_set(key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in values:
        if name.split(".")[0] not in GROUPS:
            yield key, f": {name!r} must begin with one of {', '.join(GROUPS)}."


def _amount(value: Scalar) -> Fraction | str:
    """Return a number as a fraction, so that 0.25 equals 1/4; other text unchanged."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return str(value)


def _faults_of_arm(key: str, arm: Arm) -> Iterator[tuple[str, str]]:
    yield from _faults_of_seeds(f"{key}.seeds", arm.seeds)
    yield from _faults_of_set(f"{key}.set", arm.set)
    for name, axis in arm.grid.items():
        if not re.fullmatch(_NAME, name):
            yield from _faults_of_name(f"{key}.grid.{name}", name)
        if not axis.values or not axis.keys:
            counts = f"{len(axis.values)} values and {len(axis.keys)} keys"
            yield f"{key}.grid.{name}", f" needs values and keys, got {counts}."
        if len({_amount(value) for value in axis.values}) < len(axis.values):
            yield f"{key}.grid.{name}.values", f" repeats a value: {axis.values}."
        yield from _faults_of_set(f"{key}.grid.{name}.keys", axis.keys)
    for (name, axis), (other, after) in itertools.combinations(arm.grid.items(), 2):
        if shared := set(axis.keys).intersection(after.keys):
            yield f"{key}.grid", f": two axes set {min(shared)}, {name} and {other}."
    if arm.search is None:
        return
    if arm.search.axis not in arm.grid:
        axes = ", ".join(arm.grid) or "none"
        yield f"{key}.search.axis", f": the grid has {axes}, got {arm.search.axis!r}."
    elif len(arm.grid) > 1:
        yield f"{key}.search", f": a search takes a grid of one axis, got {len(arm.grid)}."
    if not arm.search.retention:
        yield (
            f"{key}.search.retention",
            " is empty; give a limit such as {world_math/format_free: 0.9}.",
        )
    values = arm.grid[arm.search.axis].values
    yield from _faults_of_searched(f"{key}.grid.{arm.search.axis}.values", values)


def _faults_of_searched(key: str, values: Sequence[Scalar]) -> Iterator[tuple[str, str]]:
    given = ", ".join(map(str, values))
    try:
        amounts = [Fraction(str(value)) for value in values]
    except (ValueError, ZeroDivisionError):
        yield key, f": a search needs numbers, to find the smallest, got {given}."
        return
    if any(low >= high for low, high in pairwise(amounts)):
        by_amount = dict(zip(amounts, map(str, values), strict=True))
        ascending = ", ".join(text for _, text in sorted(by_amount.items()))
        yield key, f": a search needs ascending values: {ascending}; got {given}."
