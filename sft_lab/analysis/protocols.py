"""Protocols: scores of several runs compare only if they were measured alike."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.study_results import StudyResults
from sft_lab.errors import RequestError
from sft_lab.runs.results import RunResult

PROTOCOL = ("protocol", "decoding", "items", "split", "scale", "prompts", "digest")
"""Keys of a benchmark's record that decide its scores: protocols are equal if these are.

The other keys are conditions, which change no verdict but by accident: ``weights`` (the same
function up to rounding) and ``conditions``, such as ``conditions.sandbox`` (both levels grade
alike) and versions.
"""


@dataclass(frozen=True)
class Mismatch:
    """One key that differs from the reference.

    Attributes:
        run_id: The run that differs.
        benchmark: The benchmark.
        key: The key in its entry of ``record.json``, dotted.
        reference: The reference's value; None if it has no such key.
        value: The run's.
        is_protocol: Whether scores do not compare for it; a condition is only reported.
    """

    run_id: str
    benchmark: str
    key: str
    reference: Any
    value: Any
    is_protocol: bool


def mismatches(reference: RunResult, runs: Sequence[RunResult]) -> list[Mismatch]:
    """Return the keys by which runs and reference differ, of the benchmarks that both measured.

    A digest only says that something differs: it is left out if another key says what.
    """
    found = []
    for run in runs:
        for benchmark, entry in run.benchmarks.items():
            if benchmark not in reference.benchmarks:
                continue
            differing = [
                Mismatch(run.run_id, benchmark, key, old, new, key.partition(".")[0] in PROTOCOL)
                for key, old, new in _differences(
                    asdict(reference.benchmarks[benchmark]), asdict(entry)
                )
            ]
            named = {m.key for m in differing if m.is_protocol} - {"digest", "prompts"}
            found += [m for m in differing if m.key not in ("digest", "prompts") or not named]
    return found


def refuse(found: Sequence[Mismatch], names: Mapping[str, str], reference: str) -> None:
    """Refuse to compare across protocols.

    Args:
        found: Of ``mismatches``.
        names: Names of the runs by id.
        reference: Name of the reference.

    Raises:
        RequestError: If a mismatch is one of protocol; names the key and both values.
    """
    differing = [mismatch for mismatch in found if mismatch.is_protocol]
    if not differing:
        return
    first = differing[0]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    raise RequestError(
        f"benchmarks.{first.benchmark}.{first.key} is {_short(first.reference)} in {reference!r} "
        f"and {_short(first.value)} in {names[first.run_id]!r}{more}: their scores do not compare."
        "\nMeasure both under one protocol, or show them flagged: --allow_different_protocols."
    )


def mismatch_line(mismatch: Mismatch, names: Mapping[str, str], reference: str) -> str:
    """Return a mismatch as a line for people."""
    return (
        f"{mismatch.benchmark}: {mismatch.key} is {_short(mismatch.reference)} in {reference!r}, "
        f"{_short(mismatch.value)} in {names[mismatch.run_id]!r}"
    )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(
                old.get(name), new.get(name), f"{key}.{name}" if key else str(name)
            )
    elif old != new:
        yield key, old, new


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def protocol_id(run: RunResult, benchmark: str) -> str:
    """Return a short digest of a benchmark's protocol; empty if the run has no such benchmark."""
    measured = run.benchmarks.get(benchmark)
    if measured is None:
        return ""
    parts = {name: getattr(measured, name) for name in PROTOCOL}
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def finished_runs(results: StudyResults) -> dict[str, RunResult]:
    """Return the finished runs of a study, each once, by id."""
    return {
        cell.result.run_id: cell.result
        for question in results.questions
        for cell in question.cells
        if cell.result is not None and cell.result.last is not None
    }


def protocol_warnings(results: StudyResults, abilities: list[Ability]) -> list[str]:
    """Return a sentence for each benchmark that was measured under several protocols."""
    sentences = []
    for ability in abilities:
        by: dict[str, list[str]] = {}
        for run in finished_runs(results).values():
            if ability.benchmark in run.benchmarks:
                by.setdefault(protocol_id(run, ability.benchmark), []).append(run.name)
        if len(by) > 1:
            groups = "; ".join(
                f"protocol {protocol}: {_some(names)}" for protocol, names in by.items()
            )
            sentences.append(
                f"{ability.benchmark} was measured under {len(by)} different protocols "
                f"({groups}). Runs of different protocols are not compared."
            )
    return sentences


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
