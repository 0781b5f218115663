"""Estimate how long a run will take from the speed of an earlier run on the same device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import harmonic_mean
from typing import Any

from sft_lab.evaluation.budget import Pace, items_between
from sft_lab.runs.results import Point, read_result
from sft_lab.runs.store import CHANGES_TAG, RunStore

_REQUIRED = ("model.base", "model.quantization", "precision", "device", "devices")
"""Parameters that must be equal for one run's speed to predict another's."""


@dataclass(frozen=True)
class Speed:
    """Hold how fast training and evaluation are.

    Attributes:
        tokens_per_s: Tokens trained per second, prompts included, evaluations excluded.
        evaluation_s: Seconds of a full evaluation; None if none has been timed.
        generated_tokens: Most tokens that this evaluation generates, used to scale timings to
            another workload; 0 if nothing is generated.
        source: Origin of the timings.
    """

    tokens_per_s: float
    evaluation_s: float | None
    generated_tokens: int
    source: str

    def seconds_to_evaluate(self, generated_tokens: int) -> float | None:
        """Return the seconds of an evaluation that generates at most so many tokens."""
        if self.evaluation_s is None or not self.generated_tokens or not generated_tokens:
            return self.evaluation_s
        return self.evaluation_s * generated_tokens / self.generated_tokens


@dataclass(frozen=True)
class Minutes:
    """Hold how long a run will take.

    Attributes:
        training: Minutes of its optimizer steps.
        evaluation: Minutes of its evaluations; None if unknown.
        source: Origin of the timings.
    """

    training: float
    evaluation: float | None
    source: str

    @property
    def total(self) -> float:
        """Return the minutes of the known parts."""
        return self.training + (self.evaluation or 0.0)


@dataclass(frozen=True)
class Work:
    """Hold what a run's time depends on.

    Attributes:
        steps: Optimizer steps.
        tokens: Trained tokens of all passes, prompts included.
        full: Evaluations on all items.
        between: All other evaluations.
        items: Reported items by benchmark.
        generated_tokens: Most tokens that a full evaluation generates, by benchmark.
        budget: Share of the run's time that evaluations may take, or None.
        report_share: See ``Pace``.
        guarded: See ``Pace``.
    """

    steps: int
    tokens: int
    full: int
    between: int
    items: Mapping[str, int]
    generated_tokens: Mapping[str, int]
    budget: float | None
    report_share: float = 1.0
    guarded: float = 0.0


def minutes(work: Work, speed: Speed) -> Minutes:
    """Return how long a run will take.

    >>> work = Work(100, 60_000, 2, 1, {"m": 10}, {"m": 400}, budget=None)
    >>> minutes(work, Speed(500.0, 30.0, 200, "run 1"))  # 60 s for twice as much as in 30 s
    Minutes(training=2.0, evaluation=3.0, source='run 1')
    """
    training_s = work.tokens / speed.tokens_per_s
    full_s = speed.seconds_to_evaluate(sum(work.generated_tokens.values()))
    if full_s is None:
        return Minutes(training_s / 60, None, speed.source)
    evaluations = float(work.full + work.between)
    if work.budget is not None and work.between and work.items:
        step_s = training_s / work.steps
        parts = work.report_share, work.guarded
        pace = Pace(full_s, step_s, work.steps, work.full, work.between, *parts)
        counts = items_between(work.items, work.budget, pace)
        generated = sum(
            most * counts[name] / work.items[name] for name, most in work.generated_tokens.items()
        )
        share = work.report_share * generated / sum(work.generated_tokens.values())
        evaluations = work.full + work.guarded + share * work.between
    return Minutes(training_s / 60, full_s * evaluations / 60, speed.source)


class KnownSpeeds:
    """Look up how fast the finished runs of a store were, reading each once.

    Args:
        store: The runs.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._speeds: dict[str, Speed] = {}

    @cached_property
    def _runs(self) -> list[Any]:
        return [
            run
            for run in self.store.runs()
            if run.info.status == "FINISHED"
            and run.data.tags.get("command") == "fit"
            and "speed/tokens_per_s" in run.data.metrics
            # A resumed run may have been trained on two numbers of devices.
            and "number of devices" not in run.data.tags.get(CHANGES_TAG, "")
        ]

    def speed(self, parameters: Mapping[str, Any]) -> Speed | None:
        """Return how fast a run will be, or None if no earlier run is comparable.

        Of the runs with the same base, quantisation, precision, device and number of devices, it
        is the newest of those that share most of the other parameters.

        Args:
            parameters: As ``run_parameters`` returns them.
        """

        def different(run: Any) -> list[str]:
            params = run.data.params
            return [name for name in parameters if str(params.get(name)) != str(parameters[name])]

        candidates = [run for run in self._runs if not set(_REQUIRED) & set(different(run))]
        if not candidates:
            return None
        run = min(candidates, key=lambda run: len(different(run)))  # of equal ones the first
        run_id = run.info.run_id
        if run_id not in self._speeds:
            self._speeds[run_id] = _speed_of(self.store, run)
        speed = self._speeds[run_id]
        others = ", ".join(f"{name} {run.data.params.get(name)}" for name in different(run))
        return replace(speed, source=f"{speed.source}, which had {others}") if others else speed


def _speed_of(store: RunStore, run: Any) -> Speed:
    run_id = run.info.run_id

    def points(key: str) -> dict[int, float]:
        history = store.client.get_metric_history(run_id, key)
        return {point.step: point.value for point in sorted(history, key=lambda p: p.step)}

    trained, speeds = points("progress/tokens"), points("speed/tokens_per_s")
    last = max(speeds)
    steps = [0, *speeds]
    tokens = [trained[step] - trained.get(before, 0) for before, step in pairwise(steps)]
    tokens_per_s = harmonic_mean(list(speeds.values()), tokens)
    evaluation_share = points("time/eval_share")[last]
    evaluating_s = trained[last] / tokens_per_s * evaluation_share / (1 - evaluation_share)
    result = read_result(store, run)
    generated = {
        name: found.items
        * found.protocol["max_new_tokens"]
        * found.decoding["num_samples"]
        * found.turns
        for name, found in result.benchmarks.items()
    }

    # A budget evaluates some of the items, which counts as that part of a full evaluation. The
    # last evaluation is logged after the last value of the share.
    def measured(point: Point, key: str) -> int:
        return sum(scores[key].n for scores in (point.scores, point.selection) if key in scores)

    timed = sum(
        generated[name] * measured(point, key) / measured(result.points[0], key)
        for point in result.points
        if point.step < last
        for name, key in result.score_keys.items()
        if measured(point, key)
    )
    return Speed(
        tokens_per_s=tokens_per_s,
        evaluation_s=evaluating_s * sum(generated.values()) / timed if timed else None,
        generated_tokens=sum(generated.values()),
        source=f"run {run_id[:8]} ({run.info.run_name})",
    )
