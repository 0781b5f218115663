"""The base class of code benchmarks: programs run in the sandbox, and pass@k."""

import keyword
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import override

from sft_lab.config.ranges import PositiveFloat, PositiveInt
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.code_answers import MAX_LENGTH
from sft_lab.evaluation.benchmarks.python_code import canonical, parses
from sft_lab.evaluation.sandbox.sandbox import (
    LevelChoice,
    Program,
    ProgramResult,
    rank_cores,
    resolve_level,
    run_programs,
)
from sft_lab.metrics.item_score import ItemScore, PassAtK

KS = (1, 10, 100)


class CodeBenchmark(Benchmark):
    """Score the share of problems whose program passes the row's tests.

    With one completion per problem the score is pass@1, a share with Wilson's interval; with more,
    it is the unbiased estimate of pass@1, pass@10 and pass@100, as far as every problem has that
    many completions, with a bootstrap over problems.

    Args:
        path: See ``Benchmark``.
        max_new_tokens: See ``Benchmark``.
        sandbox: Containment of generated programs: ``isolated``; ``limited``, against accidents
            only; or ``isolated_or_limited``, the stronger one available.
        timeout_s: Wall time of one program in seconds.
        memory_mb: Address space of one program in MiB.
        kwargs: See ``Benchmark``.

    Raises:
        RequestError: If an argument is out of range, or the sandbox is unavailable on this machine.
    """

    score_names: tuple[str, ...] = ("pass_at_1",)

    def __init__(
        self,
        path: str,
        max_new_tokens: PositiveInt,
        sandbox: LevelChoice = "isolated",
        timeout_s: PositiveFloat = 3.0,
        memory_mb: Annotated[int, Ge(64)] = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, max_new_tokens, **kwargs)
        self.level = resolve_level(sandbox)
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb

    @classmethod
    @override
    def for_grading(cls, path: str, sandbox: LevelChoice) -> "CodeBenchmark":
        return cls(path=path, max_new_tokens=1, sandbox=sandbox)

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        name = row.get("entry_point", "f")  # rows of MBPP have none
        if not str(name).isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"key 'entry_point' must name a function, got {name!r}.")

    @abstractmethod
    def program(self, item: Item, completion: str) -> Program:
        """Return the program of a completion, and its test."""

    def official_program(self, item: Item, completion: str) -> Program | None:
        """Return the program that the benchmark's own harness runs; None if it has no such score.

        Programs that are equal but for layout and comments run once.
        """
        return None

    def has_form(self, item: Item, completion: str) -> bool | None:
        """Return whether an answer has the form that its prompt asks for; None if it asks for none.

        A benchmark that asks for one sets ``form_mark`` to ``form``.
        """
        return None

    @override
    def protocol(self) -> dict[str, Any]:
        # Without the level: both grade alike, and a run may resume where only one is available.
        limits = {"timeout_s": self.timeout_s, "memory_mb": self.memory_mb}
        return {**super().protocol(), **limits}

    @override
    def conditions(self) -> dict[str, str]:
        return {"sandbox": self.level}

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        extracted = [self.program(*asked) for asked in zip(items, completions, strict=True)]
        official = [self.official_program(*asked) for asked in zip(items, completions, strict=True)]
        own, theirs = list(map(_identity, extracted)), [p and _identity(p) for p in official]
        # An answer in a fence is not Python as it is, which needs no process to find out.
        distinct = {key: p for key, p in zip(theirs, official, strict=True) if p and _may_run(p)}
        distinct |= dict(zip(own, extracted, strict=True))
        found = run_programs(
            list(distinct.values()),
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            workers=rank_cores(),
            level=self.level,
        )
        results = dict(zip(distinct, found, strict=True))
        forms = [self.has_form(*asked) for asked in zip(items, completions, strict=True)]
        return [
            _verdict(results[mine], None if key is None else results.get(key, _NOT_PYTHON), form)
            for mine, key, form in zip(own, theirs, forms, strict=True)
        ]

    @override
    def metrics(self) -> dict[str, ItemScore]:
        return {name: PassAtK(k) for name, k, _ in self._passes()}

    @override
    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        passes = [(name, verdict.mark(mark)) for name, _, mark in self._passes()]
        return {name: [passed] for name, passed in passes if passed is not None}

    @override
    def mark_of(self, score_name: str) -> str | None:
        return next(
            (mark for name, k, mark in self._passes() if (name, k) == (score_name, 1)), None
        )

    def _passes(self) -> list[tuple[str, int, str]]:
        """Return name, k and mark of every score."""
        own = [(f"pass_at_{k}", k, "passed") for k in KS]
        if "pass_at_1_official" not in self.score_names:
            return own
        return [*own, *((f"pass_at_{k}_official", k, "passed_official") for k in KS)]


_NOT_PYTHON = ProgramResult(False, "not Python")


def _identity(program: Program) -> Program:
    """Return a program that is equal for programs which do the same."""
    return replace(program, solution=canonical(program.solution))


def _may_run(program: Program) -> bool:
    return len(program.solution) > MAX_LENGTH or parses(program.solution)


def _verdict(own: ProgramResult, official: ProgramResult | None, form: bool | None) -> Verdict:
    marks, reason = {"passed": own.passed}, own.reason
    if official is not None:
        marks["passed_official"] = official.passed
        reason += f"; official: {official.reason}" if own.passed != official.passed else ""
    if form is not None:
        marks["form"] = form
    return Verdict(marks, reason)
