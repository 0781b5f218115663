"""Format the outcome of a study, as text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from sft_lab.analysis.study_results import SearchResult
from sft_lab.study.runner import Progress
from sft_lab.terminal import counted, format_table


class StudyOutcome(NamedTuple):
    """The outcome of a study.

    Attributes:
        name: The study's name.
        run_id: The study's own run in MLflow.
        progress: The progress of every run, by digest.
        searches: The results of its searches.
    """

    name: str
    run_id: str
    progress: Mapping[str, Progress]
    searches: Sequence[SearchResult]

    @property
    def is_complete(self) -> bool:
        """True if every run has finished."""
        return all(p.state == "finished" for p in self.progress.values())


def outcome_table(outcome: StudyOutcome) -> str:
    """Return the number of finished runs, and every failed run with its reason."""
    states = [p.state for p in outcome.progress.values()]
    lines = [f"{states.count('finished')} of {counted(len(states), 'run')} finished."]
    failed = [p for p in outcome.progress.values() if p.state == "failed"]
    if failed:
        rows = [[p.run.name, str(p.attempts), p.reason[:100]] for p in failed]
        lines.append(format_table(["failed", "attempts", "reason"], rows))
    return "\n".join(lines)


def outcome_json(outcome: StudyOutcome) -> dict[str, Any]:
    """Return an outcome as plain values."""
    states = [p.state for p in outcome.progress.values()]
    return {
        "name": outcome.name,
        "run_id": outcome.run_id,
        "finished": states.count("finished"),
        "failed": states.count("failed"),
        "runs": [
            {
                "name": p.run.name,
                "cells": [cell.name for cell in p.run.cells],
                "digest": digest,
                "state": p.state,
                "run_id": p.run_id,
                "attempts": p.attempts,
                "reason": p.reason,
            }
            for digest, p in outcome.progress.items()
        ],
        "searches": [asdict(result) for result in outcome.searches],
    }
