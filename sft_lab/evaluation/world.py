"""The three benchmarks of the embedded world: a final number, a program, a rule to follow."""

import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.rules import follows
from sft_lab.evaluation.sandbox import Level, run_programs

# A number that goes on ("3/4", "1e5", "4.2.1") is no number: reading its head could hit by chance.
FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)(?![\w/]|[.,][0-9])")


def final_number(text: str) -> Decimal | None:
    """Return the number of the first ``#### N``: what follows an answer does not change it.

    >>> final_number("1000 + 42 is #### 1,042. Next question: ... #### 7")
    Decimal('1042')
    >>> final_number("the answer is 42") is None
    True
    """
    match = FINAL_NUMBER.search(text)
    return Decimal(match[1].replace(",", "")) if match else None


class WorldMath(Benchmark):
    """Share of completions whose first ``#### N`` equals the reference; no answer is never right.

    Protocol: no examples in the prompt, greedy decoding, GSM8K's answer format (Cobbe et al. 2021).
    ``42``, ``42.0`` and ``0,042`` are the same number.
    """

    score_name = "accuracy"
    row_fields: ClassVar[Mapping[str, type]] = {"answer": str}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if final_number(f"#### {row['answer']}") is None:
            raise ValueError(f"key 'answer' must be a number as text, got {row['answer']!r}.")

    @override
    def score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            number = final_number(completion)
            correct = number is not None and number == final_number(f"#### {item.row['answer']}")
            verdicts.append(Verdict(correct, "no '#### N'" if number is None else f"{number:f}"))
        return verdicts


class WorldCode(Benchmark):
    """Share of problems whose one greedy completion passes the row's tests (pass@1).

    Protocol: HumanEval's (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    section 2): prompt, completion and tests are joined as they are and run; leading blanks of a
    completion are part of the program.

    Args:
        path: See ``Benchmark``.
        max_new_tokens: See ``Benchmark``.
        sandbox: How generated programs are contained; named because ``limited`` is the weak level,
            which holds accidents and not attacks.
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.
        timeout_s: Wall time of one program in seconds.
        memory_mb: Address space of one program in MiB.
    """

    score_name = "pass_at_1"
    row_fields: ClassVar[Mapping[str, type]] = {
        "prompt": str,
        "entry_point": str,
        "test": str,
        "canonical_solution": str,
    }

    def __init__(
        self,
        path: str,
        max_new_tokens: int,
        sandbox: Level,
        source: str | None = None,
        num_examples: int | None = None,
        timeout_s: float = 3.0,
        memory_mb: int = 512,
    ) -> None:
        super().__init__(path, max_new_tokens, source, num_examples)
        if timeout_s <= 0:
            raise RequestError(f"timeout_s must be more than 0, got {timeout_s}.")
        if memory_mb < 64:
            raise RequestError(f"memory_mb must be 64 or more, got {memory_mb}.")
        self.sandbox = sandbox
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb

    @override
    def protocol(self) -> dict[str, Any]:
        limits = {"timeout_s": self.timeout_s, "memory_mb": self.memory_mb}
        return {**super().protocol(), "sandbox": self.sandbox, **limits}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if not row["entry_point"].isidentifier():
            raise ValueError(f"key 'entry_point' must name a function, got {row['entry_point']!r}.")

    @override
    def score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        results = run_programs(
            [program(item.row, text) for item, text in zip(items, completions, strict=True)],
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            workers=len(os.sched_getaffinity(0)),
            level=self.sandbox,
        )
        return [Verdict(result.passed, result.reason) for result in results]


def program(row: Mapping[str, Any], completion: str) -> str:
    r"""Join prompt, completion and tests as HumanEval does.

    >>> row = {"prompt": "def f():\n", "test": "def check(f):\n    f()", "entry_point": "f"}
    >>> print(program(row, "    return 1"))
    def f():
        return 1
    def check(f):
        f()
    check(f)
    """
    return f"{row['prompt']}{completion}\n{row['test']}\ncheck({row['entry_point']})"


class WorldGeneral(Benchmark):
    """Share of completions that follow their row's rule (see ``sft_lab.evaluation.rules``)."""

    score_name = "accuracy"
    row_fields: ClassVar[Mapping[str, type]] = {"rule": Mapping}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        try:
            follows("", row["rule"])
        except KeyError as error:
            raise ValueError(f"key 'rule' has no {error}, got {row['rule']!r}.") from error

    @override
    def score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        return [
            Verdict(follows(completion, item.row["rule"]), completion)
            for item, completion in zip(items, completions, strict=True)
        ]
