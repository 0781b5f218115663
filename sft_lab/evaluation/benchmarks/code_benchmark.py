"""The base class of code benchmarks: programs run in the sandbox, and pass@k."""

import keyword
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import override

from sft_lab.config.ranges import PositiveFloat, PositiveInt
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.sandbox.sandbox import (
    LevelChoice,
    Program,
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
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.
        timeout_s: Wall time of one program in seconds.
        memory_mb: Address space of one program in MiB.

    Raises:
        RequestError: If an argument is out of range, or the sandbox is unavailable on this machine.
    """

    score_names = ("pass_at_1",)

    def __init__(
        self,
        path: str,
        max_new_tokens: PositiveInt,
        sandbox: LevelChoice = "isolated",
        source: str | None = None,
        num_examples: PositiveInt | None = None,
        timeout_s: PositiveFloat = 3.0,
        memory_mb: Annotated[int, Ge(64)] = 1024,
    ) -> None:
        super().__init__(path, max_new_tokens, source, num_examples)
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
        programs = map(self.program, items, completions)
        results = run_programs(
            list(programs),
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            workers=len(os.sched_getaffinity(0)),
            level=self.level,
        )
        return [Verdict({"passed": result.passed}, result.reason) for result in results]

    @override
    def metrics(self) -> dict[str, ItemScore]:
        return {f"pass_at_{k}": PassAtK(k) for k in KS}

    @override
    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        passed = verdict.mark("passed")
        return {} if passed is None else {f"pass_at_{k}": [passed] for k in KS}

    @override
    def mark_of(self, score_name: str) -> str | None:
        return "passed" if score_name == "pass_at_1" else None
