"""The three benchmarks of the embedded world: a final number, a program, a rule to follow."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.code_benchmark import CodeBenchmark
from sft_lab.evaluation.sandbox.sandbox import Program

# The beginning of "3/4", "1e5" or "4.2.1" is not a match: it could be right by chance.
FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)(?![\w/]|[.,][0-9])")


def final_number(text: str) -> Decimal | None:
    """Return the number of the first ``#### N``; text after it is ignored.

    >>> final_number("1000 + 42 is #### 1,042. Next question: ... #### 7")
    Decimal('1042')
    >>> final_number("the answer is 42") is None
    True
    """
    match = FINAL_NUMBER.search(text)
    return Decimal(match[1].replace(",", "")) if match else None


class WorldMath(Benchmark):
    """Share of completions whose first ``#### N`` equals the reference.

    Protocol: zero-shot, greedy decoding, GSM8K's answer format (Cobbe et al. 2021).
    ``42``, ``42.0`` and ``0,042`` are the same number; a completion without a number is wrong.
    """

    score_names = ("accuracy",)
    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {"answer": str}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if final_number(f"#### {row['answer']}") is None:
            raise ValueError(f"key 'answer' must be a number as text, got {row['answer']!r}.")

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            number = final_number(completion)
            correct = number is not None and number == final_number(f"#### {item.row['answer']}")
            read = "no '#### N'" if number is None else f"{number:f}"
            verdicts.append(Verdict({"accuracy": correct}, read))
        return verdicts


class WorldCode(CodeBenchmark):
    """Share of problems whose one greedy completion passes the row's tests (pass@1).

    Protocol: HumanEval's (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    section 2): prompt and completion are joined unchanged, run and tested; leading blanks of a
    completion are part of the program.
    """

    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {
        "prompt": str,
        "entry_point": str,
        "test": str,
        "canonical_solution": str,
    }

    @override
    def program(self, item: Item, completion: str) -> Program:
        entry_point = item.row["entry_point"]
        test = f"{item.row['test']}\ncheck({entry_point})"
        return Program(f"{item.row['prompt']}{completion}", test, entry_point)


class WorldGeneral(Benchmark):
    """Share of completions that follow their row's rule; see ``follows``."""

    score_names = ("accuracy",)
    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {"rule": Mapping}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        try:
            follows("", row["rule"])
        except KeyError as error:
            raise ValueError(f"key 'rule' has no {error}, got {row['rule']!r}.") from error

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        return [
            Verdict({"accuracy": follows(completion, item.row["rule"])}, completion)
            for item, completion in zip(items, completions, strict=True)
        ]


def follows(completion: str, rule: Mapping[str, Any]) -> bool:
    r"""Return whether a completion follows a rule; space around the completion is ignored.

    Kinds of rule:
    ``exact``: the completion is ``text``, letter by letter.
    ``list``: it names ``count`` different members of ``of`` and nothing else, one per line, in the
    ``layout`` ``dashes`` (each after "- ") or ``numbers`` (each after "1. ", "2. " and so on).

    Args:
        completion: The model's answer.
        rule: The rule: its ``kind``, and the keys of that kind.

    Raises:
        ValueError: If the rule's kind or layout is unknown.

    >>> rule = {"kind": "list", "layout": "dashes", "count": 2, "of": ["fox", "hen", "cow"]}
    >>> follows("- cow\n- hen", rule)
    True
    >>> follows("Fox", {"kind": "exact", "text": "fox"})
    False
    """
    text = completion.strip()
    match rule["kind"]:
        case "exact":
            return bool(text == rule["text"])
        case "list":
            return _lists(text, rule)
    raise ValueError(f"rule kind must be 'exact' or 'list', got {rule['kind']!r}.")


def _lists(text: str, rule: Mapping[str, Any]) -> bool:
    count, known = rule["count"], set(rule["of"])
    match rule["layout"]:
        case "dashes":
            marks = ["- "] * count
        case "numbers":
            marks = [f"{place}. " for place in range(1, count + 1)]
        case layout:
            raise ValueError(f"rule layout must be 'dashes' or 'numbers', got {layout!r}.")
    lines = text.split("\n")
    if len(lines) != count:
        return False
    members = {
        line.removeprefix(mark)
        for line, mark in zip(lines, marks, strict=True)
        if line.startswith(mark)
    }
    return len(members) == count and members <= known
