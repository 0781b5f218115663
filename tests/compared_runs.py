"""Make up finished runs from a few marks."""

from collections.abc import Sequence
from typing import Any

from sft_lab.analysis.comparison import RunComparison, comparison
from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.measurements import Measurements
from sft_lab.analysis.protocols import Mismatch
from sft_lab.metrics.score import accuracy, mean_score
from sft_lab.runs.record import BenchmarkRecord, RunRecord, StageRecord
from sft_lab.runs.results import ItemAnswer, Point, RunResult

ENTRY = BenchmarkRecord(
    digest="aa",
    protocol={"benchmark": "GSM8K", "scores": ["flexible", "strict"], "max_new_tokens": 8},
    decoding={"temperature": 0.0},
    weights="live",
    prompts="bb",
    items=4,
    turns=1,
    scale=(0, 1),
    chance=0.0,
    marks={"flexible": "flexible", "strict": "strict"},
    source="math",
    conditions={},
    agrees_with={"strict": "RFT's grader"},
)
Boundaries = Sequence[Sequence[float | None]]
_ANSWERS: dict[tuple[str, int], list[ItemAnswer]] = {}


def run(
    name: str,
    boundaries: Boundaries,
    seed: int = 0,
    stages: int | None = None,
    prompt: str = "q",
    entry: BenchmarkRecord = ENTRY,
) -> RunResult:
    """Return a run of one benchmark, ``gsm8k``, given its marks at steps 0, 10, 20, ...

    Items are i0, i1, ...; the mark of an ungraded item is None. Each stage trains math.
    """
    named = {
        f"s{n}": StageRecord(10, 1, {"math": "1"}, {}, "")
        for n in range(1, stages or len(boundaries))
    }
    run_id = f"id of {name} {seed} {boundaries} {prompt}"
    points = []
    for number, marks in enumerate(boundaries):
        _ANSWERS[run_id, 10 * number] = [
            ItemAnswer(f"i{n}", f"i{n}", {"strict": mark}, f"i{n} is {mark}", f"{prompt} i{n}")
            for n, mark in enumerate(marks)
        ]
        graded = [mark for mark in marks if mark is not None]
        is_right = {*graded} <= {0, 1}
        score = accuracy([bool(mark) for mark in graded]) if is_right else mean_score(graded)
        after = f"s{number}" if number else None
        points.append(Point(10 * number, after, {"gsm8k/strict": score}))
    return RunResult(
        run_id=run_id,
        name=name,
        strategy="tiny",
        status="FINISHED",
        seed=seed,
        base="world://base",
        settings={},
        record=RunRecord(
            sources={},
            stages=named,
            benchmarks={"gsm8k": entry},
            abilities={"math": "gsm8k/strict"},
        ),
        points=tuple(points),
        final={},
    )


def group(name: str, *boundaries: Boundaries, **changes: Any) -> RunGroup:
    """Return the runs of one name, one per seed, as a row of a comparison."""
    runs = {seed: run(name, marks, seed, **changes) for seed, marks in enumerate(boundaries)}
    return RunGroup(name, runs)


def compared(
    groups: Sequence[RunGroup], reference: int = 0, mismatches: Sequence[Mismatch] = ()
) -> RunComparison:
    """Return the comparison of made-up runs."""
    return comparison(groups, reference, mismatches, answers)


def measurements() -> Measurements:
    """Return a reader of the marks of made-up runs."""
    return Measurements(answers)


def answers(run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
    return _ANSWERS[run.run_id, step]
