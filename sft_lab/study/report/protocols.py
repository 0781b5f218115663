"""How each benchmark was measured: scores compare only where prompt, extractor and items agree."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sft_lab.results import RunResult
from sft_lab.study.report.abilities import Ability
from sft_lab.study.report.page import Table
from sft_lab.study.study_results import StudyResults


def protocol_id(run: RunResult, benchmark: str) -> str:
    """Return a short digest of all that a run's score depends on beside the model.

    That is the benchmark's own digest (items, extractor, its settings), the rendered prompts and
    the decoding. Empty where the run has no such benchmark.
    """
    measured = run.benchmarks.get(benchmark)
    if measured is None:
        return ""
    parts = {name: measured.get(name) for name in ("digest", "prompts", "decoding")}
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def finished_runs(results: StudyResults) -> dict[str, RunResult]:
    """Return the runs of a study that came to their end, each once, by id."""
    return {
        cell.result.run_id: cell.result
        for question in results.questions
        for cell in question.cells
        if cell.result is not None and cell.result.last is not None
    }


def protocol_warnings(results: StudyResults, abilities: list[Ability]) -> list[str]:
    """Return a sentence for every benchmark that was not measured alike in all runs."""
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


def protocol_table(results: StudyResults, abilities: list[Ability]) -> Table:
    """Return the protocols that the scores of a study stand on."""
    rows: dict[tuple[str, ...], int] = {}
    for run in finished_runs(results).values():
        for ability in abilities:
            measured = run.benchmarks.get(ability.benchmark)
            if measured is not None:
                row = (
                    ability.key,
                    protocol_id(run, ability.benchmark),
                    str(measured.get("digest", ""))[:8],
                    str(measured.get("prompts", ""))[:8],
                    str(measured.get("items", "")),
                    _decoding(measured.get("decoding", {})),
                )
                rows[row] = rows.get(row, 0) + 1
    return Table(
        "How the scores were measured. Scores compare where the protocol is the same: a digest of "
        "items and extractor, of the rendered prompts, and of the decoding.",
        ("score", "protocol", "items and extractor", "prompts", "items", "decoding", "runs"),
        [[*row, str(runs)] for row, runs in sorted(rows.items())],
    )


def _decoding(decoding: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in decoding.items() if value not in (None, [], ())}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
