"""What a study will cost, before it is run."""

from typing import Any

from sft_lab.study.command import Study, finished_runs
from sft_lab.tables import format_table


def study_plan(study: Study) -> dict[str, Any]:
    """Return every run with its steps and tokens, and the sums of what is left to train.

    Returns:
        ``runs``, each with ``name``, ``cells``, ``state``, ``steps`` of the whole run,
        ``steps_to_train`` behind its fork, ``samples``, ``tokens`` and ``forked_from``; ``cells``,
        how many they fill; ``finished``; and ``steps_to_train`` and ``steps_without_forks`` of all
        that is missing.
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
        }
        for run in study.runs
    ]
    missing = [run for run in runs if run["state"] == "missing"]
    return {
        "name": study.design.name,
        "cells": sum(len(run.cells) for run in study.runs),
        "finished": len(runs) - len(missing),
        "steps_to_train": sum(run["steps_to_train"] for run in missing),
        "steps_without_forks": sum(run["steps"] for run in missing),
        "runs": runs,
    }


def plan_table(plan: dict[str, Any]) -> str:
    """Return a plan for people."""
    header = ["run", "state", "cells", "steps", "to train", "tokens", "forked from"]
    rows = [
        [
            run["name"],
            run["state"],
            str(len(run["cells"])),
            str(run["steps"]),
            str(run["steps_to_train"]),
            str(run["tokens"]),
            run["forked_from"] or "",
        ]
        for run in plan["runs"]
    ]
    summary = (
        f"{len(plan['runs'])} runs fill {plan['cells']} cells; {plan['finished']} are finished. "
        f"{plan['steps_to_train']} optimizer steps to train, "
        f"{plan['steps_without_forks']} without forks."
    )
    return f"{format_table(header, rows)}\n\n{summary}"
