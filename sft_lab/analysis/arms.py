"""What is compared: single runs, or the runs of one name over seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sft_lab.analysis.outcomes import Outcomes, outcomes
from sft_lab.config.identity import contradiction, identity
from sft_lab.errors import RequestError
from sft_lab.runs.results import RunResult, read_answers, read_result
from sft_lab.runs.store import RunStore


@dataclass(frozen=True)
class MeasuredRun:
    """A run with its items.

    Attributes:
        result: What it has measured.
        outcomes: By benchmark, then by step, its items at every stage boundary; None where the
            benchmark's first score is no mean over items.
    """

    result: RunResult
    outcomes: Mapping[str, Mapping[int, Outcomes | None]]


@dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        name: Of the run, or of its seeds in common.
        runs: One, or one for every seed.
    """

    name: str
    runs: tuple[MeasuredRun, ...]

    @property
    def keys(self) -> dict[str, str]:
        """The metric key of every benchmark's first score, of the benchmarks that all runs have."""
        first, *others = (run.result.first_keys for run in self.runs)
        return {
            name: key
            for name, key in first.items()
            if all(other.get(name) == key for other in others)
        }

    @property
    def num_boundaries(self) -> int:
        """Boundaries that every run has reached; the first is before training."""
        return min(len(run.result.boundaries) for run in self.runs)

    @property
    def is_finished(self) -> bool:
        """Whether every run has been measured at the end of its last stage."""
        return all(run.result.last is not None for run in self.runs)

    def at(self, benchmark: str, boundary: int) -> list[Outcomes] | None:
        """Return the items of a benchmark at a boundary, by run; None where there are none."""
        found = [
            run.outcomes.get(benchmark, {}).get(run.result.boundaries[boundary].step)
            for run in self.runs
        ]
        known = [items for items in found if items is not None]
        return known if len(known) == len(found) else None


def read_run(store: RunStore, run: object) -> MeasuredRun:
    """Return a run of ``fit`` with the items of its stage boundaries.

    Raises:
        RequestError: If it trains no stage, or was stopped before its first evaluation.
    """
    result = read_result(store, run)
    found: dict[str, dict[int, Outcomes | None]] = {}
    for name, key in result.first_keys.items():
        found[name] = {}
        for point in result.boundaries:
            score = point.scores.get(key)
            found[name][point.step] = outcomes(
                read_answers(store, result.run_id, name, point.step),
                key.partition("/")[2],
                None if score is None else score.value,
            )
    return MeasuredRun(result, found)


def single_runs(store: RunStore, names: Sequence[str]) -> list[Arm]:
    """Return the runs of the given names, each for itself.

    Raises:
        RequestError: If a name fits no run, or more than one, or one that has not trained.
    """
    arms = []
    for name in names:
        measured = read_run(store, store.find(name))
        arms.append(Arm(measured.result.name, (measured,)))
    return arms


def over_seeds(store: RunStore, names: Sequence[str]) -> list[Arm]:
    """Return the runs of the given names, those that differ only in ``seed N`` together.

    A name without its seed stands for the newest finished run of each of its seeds.

    Raises:
        RequestError: As ``single_runs``, if a seed is there twice in one group, and if the runs of
            a group were not trained alike: what differs would pass for the work of seeds.
    """
    finished = [run for run in store.runs() if run.info.status == "FINISHED"]
    groups: dict[str, dict[int, MeasuredRun]] = {}
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
            measured = read_run(store, run)
            group = groups.setdefault(without_seed(measured.result.name), {})
            if measured.result.seed in group:
                raise RequestError(
                    f"RUN {name!r}: {measured.result.name!r} is there with seed "
                    f"{measured.result.seed} already; name one run of each seed."
                )
            group[measured.result.seed] = measured
    arms = []
    for name, group in groups.items():
        runs = tuple(group[seed] for seed in sorted(group))
        _check_alike(store, [run.result for run in runs])
        arms.append(Arm(name if len(runs) > 1 else runs[0].result.name, runs))
    return arms


def _check_alike(store: RunStore, runs: Sequence[RunResult]) -> None:
    """Refuse runs whose configs of training differ in more than their seed."""
    first, *others = runs
    if not others:
        return
    config = _training(store, first)
    for other in others:
        found = contradiction(config, _training(store, other), len(first.stages))
        if found is not None:
            key, ours, theirs = found
            raise RequestError(
                f"RUN: {key} is {ours} in {first.name!r} and {theirs} in {other.name!r}: they are "
                "no seeds of one training. Name the runs of each, or leave --over_seeds out."
            )


def _training(store: RunStore, run: RunResult) -> dict[str, Any]:
    # How it was measured is another question, of ``protocols``.
    config = identity(yaml.safe_load(store.artifact_text(run.run_id, "config.yaml")))
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
    return re.sub(r"\s*\bseed \d+", "", name).strip()
