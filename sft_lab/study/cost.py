"""What a study will cost, before it is run."""

from typing import Any

from sft_lab.study.command import Study, finished_runs
from sft_lab.study.runs import StudyRun
from sft_lab.tables import format_table


def study_plan(study: Study) -> dict[str, Any]:
    """Return every run with its steps and tokens, and the sums of what is left to train.

    Returns:
        ``runs``, each with ``name``, ``cells``, ``state``, ``steps`` of the whole run,
        ``steps_to_train`` behind its fork, ``samples``, ``tokens``, ``forked_from``, ``minutes``
        behind its fork (None where no earlier run tells) and ``memory`` in bytes at its height;
        ``cells``, how many they fill; ``finished``; ``steps_to_train``, ``steps_without_forks``
        and ``minutes`` of all that is missing, one run after the other.
    """
    there = finished_runs(study)
    names = {run.digest: run.name for run in study.runs}
    runs = [
        {
            "name": run.name,
            "cells": [cell.name for cell in run.cells],
            "digest": run.digest,
            "state": "finished" if run.digest in there else "missing",
            "steps": sum(run.steps.values()),
            "steps_to_train": 0 if run.digest in there else run.steps_to_train,
            "samples": run.samples,
            "tokens": run.tokens,
            "forked_from": f"{names[run.fork.run]}@{run.fork.stage}" if run.fork else None,
            "minutes": 0.0 if run.digest in there else minutes_to_train(run),
            "memory": run.cost.memory.total if run.cost else None,
        }
        for run in study.runs
    ]
    missing = [run for run in runs if run["state"] == "missing"]
    minutes = [run["minutes"] for run in missing]
    return {
        "name": study.design.name,
        "cells": sum(len(run.cells) for run in study.runs),
        "finished": len(runs) - len(missing),
        "steps_to_train": sum(run["steps_to_train"] for run in missing),
        "steps_without_forks": sum(run["steps"] for run in missing),
        "minutes": sum(minutes) if None not in minutes else None,
        "runs": runs,
    }


def minutes_to_train(run: StudyRun) -> float | None:
    """Return the minutes of a run, of which a fork saves as much as its share of the steps."""
    if run.cost is None or run.cost.minutes is None:
        return None
    return run.cost.minutes.total * run.steps_to_train / sum(run.steps.values())


def plan_table(plan: dict[str, Any]) -> str:
    """Return a plan for people."""
    header = [
        "run",
        "state",
        "cells",
        "steps",
        "to train",
        "tokens",
        "minutes",
        "GB",
        "forked from",
    ]
    rows = [
        [
            run["name"],
            run["state"],
            str(len(run["cells"])),
            str(run["steps"]),
            str(run["steps_to_train"]),
            str(run["tokens"]),
            "?" if run["minutes"] is None else f"{run['minutes']:.1f}",
            "" if run["memory"] is None else f"{run['memory'] / 1e9:.1f}",
            run["forked_from"] or "",
        ]
        for run in plan["runs"]
    ]
    summary = (
        f"{len(plan['runs'])} runs fill {plan['cells']} cells; {plan['finished']} are finished. "
        f"{plan['steps_to_train']} optimizer steps to train, "
        f"{plan['steps_without_forks']} without forks.\n"
        + (
            "Minutes are unknown: the store holds no run of this base on this machine."
            if plan["minutes"] is None
            else f"About {plan['minutes']:.0f} minutes, one run after the other."
        )
    )
    return f"{format_table(header, rows)}\n\n{summary}"
