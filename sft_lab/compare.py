"""Abilities of several runs at every stage boundary, side by side."""

import json
from collections.abc import Sequence
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.tables import format_table, percent
from sft_lab.tracking import RunStore


def boundary_scores(store: RunStore, run: Any) -> list[dict[str, Any]]:
    """Return a run's scores before training and at every stage boundary it has reached.

    Args:
        store: The store that holds it.
        run: An MLflow run of ``fit``.

    Returns:
        By point in time: ``after`` (the stage that ended, or None), ``step``, and ``scores`` by
        metric key, each with ``value``, ``low`` and ``high`` in [0, 1].
    """
    run_id = run.info.run_id
    plan = json.loads(store.artifact_text(run_id, "stage_plan.json"))
    keys = sorted(
        key
        for key in run.data.metrics
        if f"{key}_low" in run.data.metrics and f"{key}_high" in run.data.metrics
    )
    history = {
        name: {point.step: point.value for point in store.client.get_metric_history(run_id, name)}
        for key in keys
        for name in (key, f"{key}_low", f"{key}_high")
    }
    points: list[tuple[str | None, int]] = [(None, 0)]
    for name, stage in plan["stages"].items():
        points.append((name, points[-1][1] + stage["steps"]))
    return [
        {
            "after": after,
            "step": step,
            "scores": {
                key: {
                    "value": history[key][step],
                    "low": history[f"{key}_low"][step],
                    "high": history[f"{key}_high"][step],
                }
                for key in keys
            },
        }
        for after, step in points
        if all(step in history[key] for key in keys)
    ]


def compare(store: RunStore, names: Sequence[str]) -> dict[str, Any]:
    """Return the runs of the given names with their scores at every stage boundary.

    Raises:
        RequestError: If a name fits no run, more than one, or one that has not trained.
    """
    runs = [store.find(name) for name in names]
    for name, run in zip(names, runs, strict=True):
        command = run.data.tags["command"]
        if command != "fit":
            raise RequestError(
                f"RUN {name!r} is one of `{command}`, which trains no stage; name runs of `fit`."
            )
    return {
        "runs": [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "benchmarks": json.loads(store.artifact_text(run.info.run_id, "stage_plan.json"))[
                    "benchmarks"
                ],
                "strategy": run.data.tags.get("strategy"),
                "status": run.info.status,
                "boundaries": boundary_scores(store, run),
                "final": {
                    key: value
                    for key, value in sorted(run.data.metrics.items())
                    if key.startswith(("retention/", "forgetting/", "average/"))
                },
            }
            for run in runs
        ]
    }


def comparison_table(compared: dict[str, Any]) -> str:
    """Return a comparison for people: the first score of every benchmark, in percent if in [0, 1].

    With 95 % intervals, and retention at the end.
    """
    shown = {
        f"{name}/{benchmark['protocol']['scores'][0]}": benchmark["scale"] == [0, 1]
        for run in compared["runs"]
        for name, benchmark in run["benchmarks"].items()
    }
    keys = sorted(shown)
    rows = []
    for run in compared["runs"]:
        status = "" if run["status"] == "FINISHED" else f" ({run['status']})"
        for boundary in run["boundaries"]:
            cells = [_cell(boundary["scores"].get(key), shown[key]) for key in keys]
            after = boundary["after"] or "(base)"
            rows.append([run["name"] + status, after, str(boundary["step"]), *cells])
        retained = [run["final"].get(f"retention/{key}") for key in keys]
        rows.append(
            ["", "retention at the end", "", *("" if r is None else f"{r:.2f}" for r in retained)]
        )
        rows.append([""] * (3 + len(keys)))
    return format_table(["run", "after", "step", *keys], rows[:-1])


def _cell(score: dict[str, float] | None, in_percent: bool) -> str:
    if score is None:
        return "-"
    value, low, high = (
        percent(score[key]) if in_percent else f"{score[key]:.2f}"
        for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"
