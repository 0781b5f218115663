"""A comparison as one JSON object."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from sft_lab.compare.arms import Arm, MeasuredRun
from sft_lab.compare.changed_items import changed_items
from sft_lab.compare.comparison import Change, Comparison, boundary_name, score_at


def as_json(compared: Comparison) -> dict[str, Any]:
    """Return a comparison with every run, score, test and changed item.

    Scores are in [0, 1], ratings in their own unit. ``runs`` stand in the order asked for,
    ``arms`` are the same or, over seeds, groups of them; ``arm`` is an index of these.
    """
    return {
        "runs": [_run(run) for arm in compared.arms for run in arm.runs],
        "arms": [_arm(arm) for arm in compared.arms],
        "reference": compared.reference,
        "differences": [_change(change) for change in compared.differences],
        "forgetting": [_change(change) for change in compared.forgetting],
        "mismatches": [asdict(mismatch) for mismatch in compared.mismatches],
    }


def _run(run: MeasuredRun) -> dict[str, Any]:
    result = run.result
    return {
        "run_id": result.run_id,
        "name": result.name,
        "benchmarks": result.benchmarks,
        "strategy": result.strategy,
        "status": result.status,
        "seed": result.seed,
        "boundaries": [
            {"after": point.after, "step": point.step, "scores": _scores(point.scores)}
            for point in result.boundaries
        ],
        "final": {
            key: value
            for key, value in result.final.items()
            if key.startswith(("retention/", "forgetting/", "average/"))
        },
        "changed_items": {
            name: [asdict(item) for item in changed_items(result, name, of_step)]
            for name, of_step in run.outcomes.items()
        },
    }


def _arm(arm: Arm) -> dict[str, Any]:
    boundaries = []
    for boundary in range(arm.num_boundaries):
        scores = {key: score_at(arm, name, boundary) for name, key in arm.keys.items()}
        known = {key: score for key, score in scores.items() if score is not None}
        boundaries.append({"after": boundary_name(arm, boundary), "scores": _scores(known)})
    runs = [run.result.run_id for run in arm.runs]
    return {"name": arm.name, "runs": runs, "boundaries": boundaries}


def _scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {key: asdict(score) for key, score in scores.items()}


def _change(change: Change) -> dict[str, Any]:
    found = asdict(change)
    difference = found.pop("difference")
    if difference is not None:  # what few items leave open has no number in JSON
        difference = {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in difference.items()
        }
    return {**found, "verdict": change.verdict, "difference": difference}
