"""How long a run will take, by how fast an earlier run on the same base and device was."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sft_lab.evaluation.budget import Pace, items_between
from sft_lab.runs.record import read_record
from sft_lab.runs.store import RunStore

_SAME = ("model.base", "model.quantization", "precision", "device")
"""Parameters of a run without which its speed says nothing of another's."""
_LIKE = (
    "model.gradient_checkpointing",
    "model.lora.r",
    "data.micro_batch_size",
    "data.packing",
    "evaluation.weights",
    "evaluation.batch_size",
    "evaluation.drafts",
)
"""Parameters that change a run's speed; of earlier runs the one that shares most is taken."""


@dataclass(frozen=True)
class Speed:
    """How fast training and evaluation are.

    Attributes:
        tokens_per_s: Tokens trained in a second, prompts included, evaluations not counted.
        evaluation_s: Seconds that a full evaluation takes; None where none has been timed.
        generated_tokens: Most tokens that such an evaluation generates, by which another's seconds
            are reckoned; 0 where it generates nothing.
        source: Where this is known from.
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
    """How long a run will take.

    Attributes:
        training: Minutes of its optimizer steps.
        evaluation: Minutes of its evaluations; None where nothing tells.
        source: Where the speed is known from.
    """

    training: float
    evaluation: float | None
    source: str

    @property
    def total(self) -> float:
        """Minutes of what is known."""
        return self.training + (self.evaluation or 0.0)


@dataclass(frozen=True)
class Work:
    """What a run will do, as far as its time depends on it.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens trained, prompts included, every pass counted.
        full: Evaluations on all items.
        between: All others.
        items: Items by benchmark.
        generated_tokens: Most tokens that a full evaluation generates, by benchmark.
        budget: Share of the run's time that evaluations may take, or None.
    """

    steps: int
    tokens: int
    full: int
    between: int
    items: Mapping[str, int]
    generated_tokens: Mapping[str, int]
    budget: float | None


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
    share = 1.0
    if work.budget is not None and work.between and work.items:
        pace = Pace(full_s, training_s / work.steps, work.steps, work.full, work.between)
        counts = items_between(work.items, work.budget, pace)
        generated = sum(
            most * counts[name] / work.items[name] for name, most in work.generated_tokens.items()
        )
        share = generated / sum(work.generated_tokens.values())
    evaluation_s = full_s * (work.full + share * work.between)
    return Minutes(training_s / 60, evaluation_s / 60, speed.source)


class KnownSpeeds:
    """How fast the finished runs of a store were; each is read once.

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
        ]

    def speed(self, parameters: Mapping[str, Any]) -> Speed | None:
        """Return how fast a run will be, or None where no earlier run tells.

        Base, quantisation, precision and device must be the same; of such runs it is the one that
        shares most of what else decides the speed, and of those the newest.

        Args:
            parameters: Those of the run that is planned, by the names that MLflow shows.
        """

        def same(run: Any, names: tuple[str, ...]) -> list[bool]:
            found = run.data.params
            return [str(found.get(name)) == str(parameters[name]) for name in names]

        candidates = [run for run in self._runs if all(same(run, _SAME))]
        if not candidates:
            return None
        run = max(candidates, key=lambda run: sum(same(run, _LIKE)))  # of equal ones the first
        speed = self._speed_of(run)
        different = [
            f"{name} {run.data.params.get(name)}"
            for name, equal in zip(_LIKE, same(run, _LIKE), strict=True)
            if not equal
        ]
        if not different:
            return speed
        return replace(speed, source=f"{speed.source}, which had {', '.join(different)}")

    def _speed_of(self, run: Any) -> Speed:
        run_id = run.info.run_id
        if run_id not in self._speeds:
            self._speeds[run_id] = _speed_of(self.store, run)
        return self._speeds[run_id]


def _speed_of(store: RunStore, run: Any) -> Speed:
    run_id = run.info.run_id

    def points(key: str) -> dict[int, float]:
        history = store.client.get_metric_history(run_id, key)
        return {point.step: point.value for point in sorted(history, key=lambda p: p.step)}

    trained, speeds = points("progress/tokens"), points("speed/tokens_per_s")
    before, training_s = 0.0, 0.0
    for step, tokens_per_s in speeds.items():
        training_s += (trained[step] - before) / tokens_per_s
        before = trained[step]
    last = max(speeds)
    evaluation_share = points("time/eval_share")[last]
    evaluating_s = training_s * evaluation_share / (1 - evaluation_share)
    benchmarks = read_record(store, run_id).benchmarks
    full = {
        name: found.items
        * found.protocol["max_new_tokens"]
        * found.decoding["num_samples"]
        * found.turns
        for name, found in benchmarks.items()
    }
    # What was measured by step: a budget takes a part of the items, and is paid for by that part.
    measured: dict[int, float] = {}
    for name, found in benchmarks.items():
        counts = points(f"{name}/{found.score_names[0]}_n")
        for step, count in counts.items():
            measured[step] = measured.get(step, 0.0) + full[name] * count / counts[0]
    # The last evaluation comes behind the last point of the share.
    timed = [generated for step, generated in measured.items() if step < last]
    most = sum(full.values())
    evaluations = sum(timed) / most if most else 0.0
    return Speed(
        tokens_per_s=before / training_s,
        evaluation_s=evaluating_s / evaluations if evaluations else None,
        generated_tokens=most,
        source=f"run {run_id[:8]} ({run.info.run_name})",
    )
