"""Finding what is compared: single runs, or the runs of one name over seeds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sft_lab.analysis.groups import RunGroup
from sft_lab.config.identity import contradiction, identity
from sft_lab.errors import RequestError
from sft_lab.runs.results import RunResult, read_result
from sft_lab.runs.store import RunStore


def single_runs(store: RunStore, names: Sequence[str]) -> list[RunGroup]:
    """Return the runs of the given names, each in a group; equal run names get the start of the id.

    Raises:
        RequestError: If a name fits no run, or more than one, or one that has not trained.
    """
    found = [read_result(store, store.find(name)) for name in names]
    groups = []
    for run in found:
        is_shared = len({other.run_id for other in found if other.name == run.name}) > 1
        label = f"{run.name} {run.run_id[:8]}" if is_shared else run.name
        groups.append(RunGroup(label, {run.seed: run}))
    return groups


def over_seeds(store: RunStore, names: Sequence[str]) -> list[RunGroup]:
    """Return the runs of the given names, grouped by their name without ``seed N``.

    A name without its seed means the newest finished run of each of its seeds.

    Raises:
        RequestError: As ``single_runs``, if a seed is there twice in one group, and if the runs of
            a group were not trained alike: the difference would pass for one between seeds.
    """
    finished = [run for run in store.runs() if run.info.status == "FINISHED"]
    groups: dict[str, dict[int, RunResult]] = {}
    seen: set[str] = set()
    for name in names:
        newest = {
            run.info.run_name: run
            for run in reversed(finished)
            if without_seed(run.info.run_name) == name != run.info.run_name
        }
        for run in newest.values() or [store.find(name)]:
            if run.info.run_id in seen:
                continue
            seen.add(run.info.run_id)
            result = read_result(store, run)
            group = groups.setdefault(without_seed(result.name), {})
            if result.seed in group:
                raise RequestError(
                    f"RUN {name!r}: {result.name!r} is there with seed {result.seed} already; "
                    "name one run of each seed."
                )
            group[result.seed] = result
    found = []
    for name, group in groups.items():
        runs = {seed: group[seed] for seed in sorted(group)}
        first, *others = runs.values()
        _check_alike(store, first, others)
        found.append(RunGroup(name if others else first.name, runs))
    return found


def _check_alike(store: RunStore, first: RunResult, others: Sequence[RunResult]) -> None:
    """Refuse runs whose training configs differ in more than their seed."""
    config = _training(store, first) if others else {}
    for other in others:
        found = contradiction(config, _training(store, other), len(first.stages))
        if found is not None:
            key, ours, theirs = found
            raise RequestError(
                f"RUN: {key} is {ours} in {first.name!r} and {theirs} in {other.name!r}: they are "
                "not seeds of one training. Name the runs of each, or leave --over_seeds out."
            )


def _training(store: RunStore, run: RunResult) -> dict[str, Any]:
    # How runs were measured is compared in ``protocols``.
    config = identity(store.config(run.run_id))
    return _without_seeds({key: config[key] for key in config if key != "evaluation"})


def _without_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without ``seed_everything`` and the seeds that follow it."""
    return {
        key: _without_seeds(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in ("seed", "seed_everything")
    }


def without_seed(name: str) -> str:
    """Return a run's name without its seed.

    >>> without_seed("dmt k=1/16 seed 0")
    'dmt k=1/16'
    """
    return re.sub(r"(?<!\s)\s*\bseed \d+", "", name).strip()
