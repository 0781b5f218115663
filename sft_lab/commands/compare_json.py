"""A comparison as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from sft_lab.analysis.abilities import abilities_in
from sft_lab.analysis.comparison import RunComparison
from sft_lab.analysis.forgetting import changed_items, changes_of
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Comparison, Measurements, boundary_of
from sft_lab.metrics.score import Score
from sft_lab.runs.results import RunResult


def as_json(compared: RunComparison) -> dict[str, Any]:
    """Return a comparison with every run, score, test and changed item.

    Scores are in [0, 1], ratings in their own unit. ``runs`` are in the order asked for,
    ``groups`` are the same or, over seeds, groups of them; ``group`` is an index of these.
    """
    return {
        "runs": [
            _run(run, compared.measured) for group in compared.groups for run in group.runs.values()
        ],
        "groups": [_group(compared, group) for group in compared.groups],
        "reference": compared.reference,
        "margin": compared.measured.margin,
        "differences": [
            {"group": index, **_comparison(found)} for index, found in compared.differences
        ],
        "forgetting": [
            {"group": index, **_comparison(drop.comparison)} for index, drop in compared.forgetting
        ],
        "mismatches": [asdict(mismatch) for mismatch in compared.mismatches],
    }


def _run(run: RunResult, measured: Measurements) -> dict[str, Any]:
    abilities = abilities_in(run)
    return {
        "run_id": run.run_id,
        "name": run.name,
        "benchmarks": {name: asdict(found) for name, found in run.benchmarks.items()},
        "strategy": run.strategy,
        "status": run.status,
        "seed": run.seed,
        "boundaries": [
            {
                "after": point.after,
                "step": point.step,
                "scores": _scores(point.scores),
                "forms": _scores(point.forms),
            }
            for point in run.boundaries
        ],
        "average": run.final.get("average/score"),
        "changes": {ability.key: changes_of(run, ability) for ability in abilities},
        "changed_items": {
            ability.benchmark: [asdict(item) for item in changed_items(run, ability, measured)]
            for ability in abilities
        },
    }


def _group(compared: RunComparison, group: RunGroup) -> dict[str, Any]:
    boundaries = []
    for boundary in range(group.num_boundaries):
        scores = {a.key: compared.score(group, a, boundary) for a in group.abilities}
        known = {key: score for key, score in scores.items() if score is not None}
        stage = boundary_of(group, boundary).stage
        boundaries.append({"after": stage, "scores": _scores(known)})
    runs = [run.run_id for run in group.runs.values()]
    return {"name": group.label, "runs": runs, "boundaries": boundaries}


def _scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {key: asdict(score) for key, score in scores.items()}


def _comparison(found: Comparison) -> dict[str, Any]:
    difference = None
    if found.difference is not None:  # what few items leave open has no number in JSON
        difference = {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in asdict(found.difference).items()
        }
    return {
        "benchmark": found.ability.benchmark,
        "key": found.ability.key,
        "before": found.before,
        "after": found.after,
        "difference": difference,
        "why_not": found.why_not,
        "p_holm": found.p_holm if difference else None,
        "p_equivalent": found.p_equivalent if difference else None,
        "smallest": found.smallest if difference and isfinite(found.smallest) else None,
        "conclusion": found.conclusion,
        "gained": found.gained,
        "lost": found.lost,
    }
