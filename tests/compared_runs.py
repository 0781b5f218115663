"""Runs that never ran: what a finished run says, from a few marks."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sft_lab.analysis.arms import Arm, MeasuredRun
from sft_lab.analysis.outcomes import Outcomes
from sft_lab.metrics.score import Score
from sft_lab.runs.record import BenchmarkRecord, RunRecord, StageRecord
from sft_lab.runs.results import Point, RunResult

ENTRY = BenchmarkRecord(
    digest="aa",
    protocol={"benchmark": "GSM8K", "scores": ["strict", "flexible"], "max_new_tokens": 8},
    decoding={"temperature": 0.0},
    weights="live",
    prompts="bb",
    items=4,
    turns=1,
    scale=(0, 1),
    source=None,
    conditions={},
)


def items_of(marks: Sequence[float | None], prompt: str = "q") -> Outcomes:
    """Items i0, i1, ... with these marks, None where one could not be graded."""
    names = [f"i{n}" for n in range(len(marks))]
    return Outcomes(
        {name: float(mark) for name, mark in zip(names, marks, strict=True) if mark is not None},
        {name: (f"{name} is {mark}",) for name, mark in zip(names, marks, strict=True)},
        {name: (f"{prompt} {name}",) for name in names},
    )


def measured(
    name: str,
    boundaries: Sequence[Sequence[float | None]],
    seed: int = 0,
    stages: int | None = None,
    prompt: str = "q",
    entry: BenchmarkRecord = ENTRY,
) -> MeasuredRun:
    """A run of one benchmark, ``gsm8k``, with its marks at step 0, 10, 20, ..."""
    named = {f"s{n}": StageRecord(10, 1, {}, {}, "") for n in range(1, stages or len(boundaries))}
    outcomes = {10 * n: items_of(marks, prompt) for n, marks in enumerate(boundaries)}
    points = []
    for step, found in outcomes.items():
        score = Score(fmean(found.marks.values()), 0.0, 1.0, len(found.marks))
        after = f"s{step // 10}" if step else None
        points.append(Point(step, after, {"gsm8k/strict": score}))
    result = RunResult(
        run_id=f"id of {name} {seed}",
        name=name,
        strategy="tiny",
        status="FINISHED",
        seed=seed,
        base="world://base",
        record=RunRecord(sources={}, stages=named, benchmarks={"gsm8k": entry}),
        points=tuple(points),
        final={"retention/gsm8k/strict": 0.5},
    )
    return MeasuredRun(result, {"gsm8k": outcomes})


def arm(name: str, boundaries: Sequence[Sequence[float | None]], **changes: Any) -> Arm:
    """One run as a row of a comparison."""
    return Arm(name, (measured(name, boundaries, **changes),))
