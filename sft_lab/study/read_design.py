"""Reads a study's config and refuses what cannot be right, before any run is laid out."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from sft_lab.config.compose import Composed, as_yaml
from sft_lab.config.keys import check_keys
from sft_lab.errors import RequestError
from sft_lab.launch.parser import GROUPS, explain
from sft_lab.report.section import ReportSection
from sft_lab.study.design import STUDY_KEYS, Arm, ReportDesign, Scalar, StudyDesign

_NAME = r"[A-Za-z0-9_.-]+"


def read_design(composed: Composed) -> StudyDesign:
    """Return the design that a config holds, checked as far as it can be without any run's config.

    Raises:
        RequestError: Naming the key, where it was written, the value and the fix.
    """
    hints = get_type_hints(StudyDesign)
    nested = {key: hints[key] for key in ("questions", "resources", "report")}
    check_keys(composed, nested, list(STUDY_KEYS))
    whole = composed.resolved()
    for key in ("name", "strategies", "questions"):
        if not whole.get(key):
            raise RequestError(
                f"{composed.origin(key)}{key}: a study needs it; see configs/studies/rq4.yaml."
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--study", type=StudyDesign)
    try:
        parsed = parser.parse_object({"study": _with_sets_as_text(whole)})
        design: StudyDesign = parser.instantiate(parsed).study
    except ArgumentError as fault:
        raise RequestError(explain(str(fault).replace("study.", ""), composed)) from fault
    for key, why in _faults(design):
        raise RequestError(f"{composed.origin(key)}{key}{why}")
    return design


def read_sections(config: Mapping[str, Any]) -> list[ReportSection]:
    """Return the report's sections of a study's recorded config.

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
    return report.sections


def _with_sets_as_text(value: Any) -> Any:
    """Return a config in which every value under ``set`` is text, as an override on a command line.

    The parser would otherwise make the classes that it names, which is for the run to do.
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
    """Yield keys and what is wrong with them."""
    if not re.fullmatch(rf"(?!\.){_NAME}", design.name):
        yield (
            "name",
            " becomes a folder; use letters, digits, _, - and . (not as the first), "
            f"got {design.name!r}.",
        )
    if design.attempts < 1:
        yield "attempts", f" must be 1 or more, got {design.attempts}."
    yield from _faults_of_seeds("seeds", design.seeds)
    takes = design.resources
    if takes.cpus < 1 or takes.gpus < 0:
        yield "resources", f": cpus must be 1 or more and gpus 0 or more, got {takes}."
    if takes.memory_gb is not None and takes.memory_gb <= 0:
        yield "resources.memory_gb", f" must be above 0, got {takes.memory_gb}."
    yield from _faults_of_set("set", design.set)
    for name, question in design.questions.items():
        yield from _faults_of_name(f"questions.{name}", name)
        if not question.arms:
            yield f"questions.{name}.arms", " is empty; a question has at least one arm."
        yield from _faults_of_seeds(f"questions.{name}.seeds", question.seeds)
        for arm_name, arm in question.arms.items():
            yield from _faults_of_name(f"questions.{name}.arms.{arm_name}", arm_name)
            yield from _faults_of_arm(f"questions.{name}.arms.{arm_name}", arm)


def _faults_of_seeds(key: str, seeds: Sequence[int] | None) -> Iterator[tuple[str, str]]:
    if seeds == []:
        yield key, " is empty; give at least one, such as [0]."
    elif seeds and (min(seeds) < 0 or len(set(seeds)) < len(seeds)):
        yield key, f" must be 0 or more, and each once, got {seeds}."


def _faults_of_name(key: str, name: str) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(_NAME, name):
        yield key, f" becomes files and anchors; use letters, digits, _, . and -, got {name!r}."


def _faults_of_set(key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in values:
        if name.split(".")[0] not in GROUPS:
            yield key, f": {name!r} does not begin with {', '.join(GROUPS)}."


def _amount(value: Scalar) -> Fraction | str:
    """Return a number as what it amounts to: 0.25 is 1/4."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return str(value)


def _faults_of_arm(key: str, arm: Arm) -> Iterator[tuple[str, str]]:
    yield from _faults_of_seeds(f"{key}.seeds", arm.seeds)
    yield from _faults_of_set(f"{key}.set", arm.set)
    for name, axis in arm.grid.items():
        if not re.fullmatch(_NAME, name):
            yield f"{key}.grid", f": names an axis; use letters, digits, _, . and -, got {name!r}."
        if not axis.values or not axis.keys:
            counts = f"{len(axis.values)} values and {len(axis.keys)} keys"
            yield f"{key}.grid.{name}", f" needs values and keys, got {counts}."
        if len({_amount(value) for value in axis.values}) < len(axis.values):
            yield f"{key}.grid.{name}.values", f" has a value twice: {axis.values}."
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
        yield f"{key}.search", f": a search goes along one axis, the grid has {len(arm.grid)}."
    if not 0.5 < arm.search.confidence < 1:
        yield f"{key}.search.confidence", f" must lie in (0.5, 1), got {arm.search.confidence}."
    if not arm.search.retention:
        yield (
            f"{key}.search.retention",
            " is empty; give a limit such as {world_math/accuracy: 0.9}.",
        )
    for ability, limit in arm.search.retention.items():
        if not 0 < limit <= 1:
            yield f"{key}.search.retention.{ability}", f" must lie in (0, 1], got {limit}."
    values = arm.grid[arm.search.axis].values
    yield from _faults_of_searched(f"{key}.grid.{arm.search.axis}.values", values)


def _faults_of_searched(key: str, values: Sequence[Scalar]) -> Iterator[tuple[str, str]]:
    seen = ", ".join(map(str, values))
    try:
        amounts = [Fraction(str(value)) for value in values]
    except (ValueError, ZeroDivisionError):
        yield key, f": a search looks for the smallest, so they must be numbers, got {seen}."
        return
    if any(low >= high for low, high in pairwise(amounts)):
        by_amount = dict(zip(amounts, map(str, values), strict=True))
        rising = ", ".join(text for _, text in sorted(by_amount.items()))
        yield key, f": a search needs values that rise: {rising}; got {seen}."
