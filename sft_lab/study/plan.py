"""Estimate what a study will cost before it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_lab.analysis.run_groups import without_seed
from sft_lab.study.runs import StudyRun
from sft_lab.study.search import SearchKey
from sft_lab.study.study import Study, finished_runs
from sft_lab.terminal import counted, fitted_table, size_text, wrapped


def study_plan(study: Study) -> dict[str, Any]:
    """Return every run with its steps and tokens, and the totals of what is left to train.

    Returns:
        ``runs``, each with ``name``, ``cells``, ``digest``, ``state``, ``steps`` of the whole run,
        ``steps_to_train`` after its fork, ``samples``, ``tokens``, ``forked_from``, ``minutes``
        after its fork (None if no earlier run gives a speed) and peak ``memory`` in bytes;
        ``cells``, the number of cells they fill; ``finished``; ``steps_to_train``,
        ``steps_without_forks`` and ``minutes`` of all missing runs, trained sequentially;
        ``searches`` with the most runs that each may add, and ``minutes_at_most`` including those.
    """
    finished = finished_runs(study)
    names = {run.digest: run.name for run in study.runs}
    runs: list[dict[str, Any]] = [
        {
            "name": run.name,
            "cells": [cell.name for cell in run.cells],
            "digest": run.digest,
            "state": "finished" if run.digest in finished else "missing",
            "steps": sum(run.steps.values()),
            "steps_to_train": 0 if run.digest in finished else run.steps_to_train,
            "samples": run.samples,
            "tokens": run.tokens,
            "forked_from": f"{names[run.fork.run]}@{run.fork.stage}" if run.fork else None,
            "minutes": 0.0 if run.digest in finished else _minutes_to_train(run),
            "memory": run.cost.memory.total if run.cost else None,
        }
        for run in study.runs
    ]
    missing = [run for run in runs if run["state"] == "missing"]
    minutes = _sum([run["minutes"] for run in missing])
    searches = [_search_plan(key, runs, finished) for key, runs in study.searched.items()]
    return {
        "name": study.design.name,
        "cells": sum(len(run.cells) for run in study.runs),
        "finished": len(runs) - len(missing),
        "steps_to_train": sum(run["steps_to_train"] for run in missing),
        "steps_without_forks": sum(run["steps"] for run in missing),
        "minutes": minutes,
        "minutes_at_most": _sum([minutes, *(search["minutes_at_most"] for search in searches)]),
        "searches": searches,
        "runs": runs,
    }


def _search_plan(
    key: SearchKey, runs: Sequence[StudyRun], finished: Mapping[str, str]
) -> dict[str, Any]:
    missing = [run for run in runs if run.digest not in finished]
    return {
        **key._asdict(),
        "runs_at_most": len(missing),
        "steps_at_most": sum(run.steps_to_train for run in missing),
        "minutes_at_most": _sum([_minutes_to_train(run) for run in missing]),
    }


def _sum(minutes: Sequence[float | None]) -> float | None:
    known = [one for one in minutes if one is not None]
    return sum(known) if len(known) == len(minutes) else None


def _minutes_to_train(run: StudyRun) -> float | None:
    """Return the minutes of a run, scaled by its share of steps that no fork saves."""
    if run.cost is None or run.cost.minutes is None:
        return None
    return run.cost.minutes.total * run.steps_to_train / sum(run.steps.values())


def plan_table(plan: dict[str, Any]) -> str:
    """Return a plan as text: a row for the runs that differ by their seed, and a total."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for run in plan["runs"]:
        rows_of.setdefault(without_seed(run["name"]), []).append(run)
    header = ["runs", "seeds", "done", "steps", "to train", "tokens", "minutes", "memory"]
    rows = [[name, *_row(runs)] for name, runs in rows_of.items()]
    rows.append(["all", *_row(plan["runs"])])
    parents = [without_seed(runs[-1]["forked_from"] or "-") for runs in rows_of.values()]
    if any(parent != "-" for parent in parents):
        header.append("forked from")
        rows = [[*row, parent] for row, parent in zip(rows, [*parents, "-"], strict=True)]
    return "\n".join([fitted_table(header, rows), "", *_summary(plan)])


def _row(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what runs have in common: their number and sums, and the largest memory."""
    minutes, memory = _sum([run["minutes"] for run in runs]), [run["memory"] for run in runs]
    return [
        f"{len(runs):,}",
        f"{sum(run['state'] == 'finished' for run in runs):,}",
        f"{sum(run['steps'] for run in runs):,}",
        f"{sum(run['steps_to_train'] for run in runs):,}",
        f"{sum(run['tokens'] for run in runs):,}",
        "-" if minutes is None else f"{minutes:,.1f}",
        "-" if None in memory or not memory else size_text(max(memory)),
    ]


def _summary(plan: dict[str, Any]) -> list[str]:
    lines = [
        f"{counted(len(plan['runs']), 'run fills', 'runs fill')} {counted(plan['cells'], 'cell')}; "
        f"{counted(plan['finished'], 'is', 'are')} finished. "
        f"{counted(plan['steps_to_train'], 'optimizer step')} to train, "
        f"{plan['steps_without_forks']:,} without forks."
    ]
    lines += [
        f"{search['question']} {search['arm']} searches in up to {search['runs_at_most']} more "
        f"runs, of {counted(search['steps_at_most'], 'step')}."
        for search in plan["searches"]
    ]
    note = "Steps, tokens and minutes of a row are those of all its seeds, memory that of one run."
    return [wrapped(line) for line in [note, *lines, _minutes_text(plan)]]


def _minutes_text(plan: dict[str, Any]) -> str:
    least, most = plan["minutes"], plan["minutes_at_most"]
    if most is None:
        return "Minutes are unknown: the store holds no run of this base on this machine."
    span = f"{least:,.1f}" if least == most else f"{least:,.1f} to {most:,.1f}"
    return f"About {span} minutes, one run at a time."
