"""The command ``compare``: runs found by name, their protocols checked, differences tested."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from sft_lab.analysis.arms import Arm, MeasuredRun, over_seeds, single_runs
from sft_lab.analysis.changed_items import changed_items
from sft_lab.analysis.comparison import Change, Comparison, boundary_name, comparison, score_at
from sft_lab.analysis.protocols import mismatches, refuse
from sft_lab.commands.arguments import add_json, add_tracking_uri, command_parser, in_color
from sft_lab.errors import RequestError
from sft_lab.runs.store import RunStore


def compare(
    store: RunStore,
    names: Sequence[str],
    reference: str | None = None,
    group_seeds: bool = False,
    allow_different_protocols: bool = False,
) -> Comparison:
    """Return the comparison of the runs of the given names.

    Args:
        store: The store that holds them.
        names: Ids, unique beginnings of ids, or names.
        reference: What the others are compared with, one of them or one more; else the first.
        group_seeds: Take runs of one name without ``seed N`` together.
        allow_different_protocols: Compare also what was measured otherwise.

    Raises:
        RequestError: If a name fits no run, more than one, or one that has not trained; if a seed
            is there twice; or if protocols differ and may not.
    """
    find = over_seeds if group_seeds else single_runs
    arms = find(store, names)
    index = 0
    if reference is not None:
        (wanted,) = find(store, [reference])
        ids = {run.result.run_id for run in wanted.runs}
        holding = [n for n, arm in enumerate(arms) if ids <= {r.result.run_id for r in arm.runs}]
        if holding:
            index = holding[0]
        else:
            arms = [wanted, *arms]
    results = [run.result for arm in arms for run in arm.runs]
    first = arms[index].runs[0].result
    found = mismatches(first, [result for result in results if result is not first])
    if not allow_different_protocols:
        refuse(found, run_names(arms), first.name)
    return comparison(arms, index, found)


def run_names(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the names of all runs by id."""
    return {run.result.run_id: run.result.name for arm in arms for run in arm.runs}


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
        "benchmarks": {name: asdict(found) for name, found in result.benchmarks.items()},
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


def main(arguments: list[str]) -> int:
    """Compare runs, and print what differs."""
    parser = command_parser("compare")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="id, beginning of one, or run name")
    parser.add_argument(
        "--reference", metavar="RUN", help="the run to compare the others with; default: the first"
    )
    parser.add_argument(
        "--over_seeds",
        action="store_true",
        help="average runs whose names differ in 'seed N' only; the name alone stands for all",
    )
    parser.add_argument(
        "--items",
        type=int,
        default=5,
        metavar="N",
        help="forgotten, and regained, items to show of every benchmark; default: %(default)s",
    )
    parser.add_argument(
        "--allow_different_protocols",
        action="store_true",
        help="show scores side by side, flagged, that do not compare",
    )
    add_json(parser)
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)

    from sft_lab.commands.compare_text import report

    if options.items < 0:
        raise RequestError(f"--items must be 0 or more, got {options.items}.")
    compared = compare(
        RunStore(options.tracking_uri),
        options.runs,
        options.reference,
        options.over_seeds,
        options.allow_different_protocols,
    )
    if options.json:
        print(json.dumps(as_json(compared), indent=2, ensure_ascii=False))
    else:
        print(report(compared, options.items, color=in_color()))
    return 0
