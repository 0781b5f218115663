"""How a study ended, for people and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from sft_lab.analysis.study_results import SearchResult
from sft_lab.study.runner import Progress
from sft_lab.terminal import format_table


class Outcome(NamedTuple):
    """How a study ended.

    Attributes:
        name: The study's name.
        run_id: Its run in MLflow.
        progress: The progress of every run, by digest.
        searches: What searches have come to.
    """

    name: str
    run_id: str
    progress: Mapping[str, Progress]
    searches: Sequence[SearchResult]

    @property
    def is_complete(self) -> bool:
        """Whether every run has finished."""
        return all(p.state == "finished" for p in self.progress.values())


def outcome_table(outcome: Outcome) -> str:
    """Return how a study ended: counts, and every run that failed with its reason."""
    states = [p.state for p in outcome.progress.values()]
    lines = [f"{states.count('finished')} of {len(states)} runs finished."]
    failed = [p for p in outcome.progress.values() if p.state == "failed"]
    if failed:
        rows = [[p.run.name, str(p.attempts), p.reason[:100]] for p in failed]
        lines.append(format_table(["failed", "attempts", "reason"], rows))
    return "\n".join(lines)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return how a study ended as plain values."""
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
