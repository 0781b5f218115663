"""The three benchmarks of the embedded world: a final number, a program, words to answer with.

The main score of each is ``format_free``: whether the content of the answer is right, in any form.
The strict score also requires the form of the sources' answers, which the mark ``form`` records.
"""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.code_answers import solution
from sft_lab.evaluation.benchmarks.code_benchmark import CodeBenchmark
from sft_lab.evaluation.benchmarks.python_code import is_stub, parses, search_program
from sft_lab.evaluation.sandbox.sandbox import Program

# The beginning of "3/4", "1e5" or "4.2.1" is not a match: it could be right by chance.
_NUMBER = r"(-?[0-9][0-9,]*(?:\.[0-9]+)?)(?![\w/]|[.,][0-9])"
FINAL_NUMBER = re.compile(rf"####[ \t]*{_NUMBER}")
ANY_NUMBER = re.compile(rf"(?<![\w./]){_NUMBER}|(?<==){_NUMBER}")
_FINAL = re.compile(r"^####[ \t]*+(\S.*)$", re.MULTILINE)


def final_number(text: str) -> Decimal | None:
    """Return the number of the first ``#### N``; text after it is ignored.

    >>> final_number("1000 + 42 is #### 1,042. Next question: ... #### 7")
    Decimal('1042')
    >>> final_number("the answer is 42") is None
    True
    """
    match = FINAL_NUMBER.search(text)
    return _decimal(match[1]) if match else None


def last_number(text: str) -> Decimal | None:
    """Return the number of the first ``#### N`` or, without one, the last number.

    >>> last_number("6*7=42. That makes 42.")
    Decimal('42')
    """
    if (number := final_number(text)) is not None:
        return number
    found = ANY_NUMBER.findall(text)
    return _decimal(max(found[-1], key=len)) if found else None


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


class WorldMath(Benchmark):
    """Share of completions whose number equals the reference.

    Protocol: zero-shot, greedy decoding, GSM8K's answer format (Cobbe et al. 2021). ``accuracy``
    reads the first ``#### N``; ``format_free`` the last number of a completion that has none.
    ``42``, ``42.0`` and ``0,042`` are the same number; a completion without a number is wrong.
    """

    score_names = ("format_free", "accuracy")
    strict_score = "accuracy"
    form_mark = "form"
    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {"answer": str}
    right_row: ClassVar[Mapping[str, Any]] = {
        "id": "m1",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "answer": "4",
    }

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if final_number(f"#### {row['answer']}") is None:
            raise ValueError(f"key 'answer' must be a number as text, got {row['answer']!r}.")

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            right = final_number(f"#### {item.row['answer']}")
            strict, free = final_number(completion), last_number(completion)
            marks = {
                "format_free": free == right,
                "accuracy": strict == right,
                "form": strict is not None,
            }
            read = "no number" if free is None else f"{free:f}"
            verdicts.append(Verdict(marks, read))
        return verdicts

    @override
    def reference_answer(self, item: Item) -> str | None:
        return item.row.get("solution")


class WorldCode(CodeBenchmark):
    """Share of problems whose one greedy completion passes the row's tests.

    ``pass_at_1`` follows HumanEval's protocol (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", section 2): prompt and completion are joined unchanged, run and tested;
    leading blanks of a completion are part of the program. ``format_free`` takes the program from
    any wrapping: a fence, a whole function of any name, a body with another indent, a bare
    expression. The asked form is an indented body, and ``pass_at_1`` requires it: a whole function
    does not count.
    """

    score_names = ("format_free", "pass_at_1")
    strict_score = "pass_at_1"
    form_mark = "form"
    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {
        "prompt": str,
        "entry_point": str,
        "test": str,
        "canonical_solution": str,
    }
    right_row: ClassVar[Mapping[str, Any]] = {
        "id": "c1",
        "messages": [{"role": "user", "content": "def add(a, b):\n"}],
        "prompt": "def add(a, b):\n",
        "entry_point": "add",
        "test": "def check(f):\n    assert f(2, 2) == 4",
        "canonical_solution": "    return a + b",
    }

    @override
    def program(self, item: Item, completion: str) -> Program:
        prompt, entry_point = item.row["prompt"], item.row["entry_point"]
        return Program(unwrapped(prompt, entry_point, completion), _test(item), entry_point)

    @override
    def official_program(self, item: Item, completion: str) -> Program | None:
        if not self.has_form(item, completion):
            return None
        return Program(item.row["prompt"] + completion, _test(item), item.row["entry_point"])

    @override
    def has_form(self, item: Item, completion: str) -> bool:
        return completion.startswith(" ") and parses(item.row["prompt"] + completion)

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = super().grade(items, completions)
        return [
            replace(verdict, marks={"passed_official": False, **(verdict.marks or {})})
            for verdict in verdicts
        ]

    @override
    def _passes(self) -> list[tuple[str, int, str]]:
        return [("format_free", 1, "passed"), ("pass_at_1", 1, "passed_official")]

    @override
    def reference_answer(self, item: Item) -> str:
        answer: str = item.row["canonical_solution"]
        return answer


def _test(item: Item) -> str:
    return f"{item.row['test']}\ncheck({item.row['entry_point']})"


def unwrapped(prompt: str, entry_point: str, completion: str) -> str:
    r"""Return the program that an answer makes of a prompt, whatever its wrapping.

    Beyond ``solution`` this reads, from the answer or from its first line, a body whose indent is
    wrong and an expression without ``return``; and a whole function of another name.

    >>> unwrapped("def double(n):\n", "double", "2 * n")
    'def double(n):\n    return 2 * n'
    """
    found = solution(prompt, entry_point, completion)
    if parses(found) and not is_stub(found, entry_point):
        return found
    # A fence without the function is its body, which ``solution`` puts after the prompt.
    code = found.removeprefix(prompt) if "```" in completion else completion
    code = textwrap.dedent(code.strip("\n")).strip()
    whole = search_program(code)[0]
    if name := re.search(r"^def (\w+)\(", whole, re.MULTILINE):
        return f"{prompt}\n{whole}\n{entry_point} = {name[1]}"
    for text in dict.fromkeys((code, code.partition("\n")[0])):
        body = f"return {text}" if _is_expression(text) else text
        program = prompt + textwrap.indent(body, "    ")
        if body and parses(program):
            return program
    return found


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


class WorldGeneral(Benchmark):
    """Share of completions that answer with the row's words; see ``is_right`` and ``has_form``.

    ``accuracy`` is the share of those that also have the asked form.
    """

    score_names = ("format_free", "accuracy")
    strict_score = "accuracy"
    form_mark = "form"
    cluster_field = "structure"
    row_fields: ClassVar[Mapping[str, type]] = {"rule": Mapping}
    right_row: ClassVar[Mapping[str, Any]] = {
        "id": "g1",
        "messages": [{"role": "user", "content": "Which animal barks?"}],
        "rule": {"form": "final", "words": ["dog"], "among": ["cat", "dog"]},
    }

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        try:
            is_right("", row["rule"])
            has_form("", row["rule"])
        except KeyError as error:
            raise ValueError(f"key 'rule' has no {error}, got {row['rule']!r}.") from error

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            right = is_right(completion, item.row["rule"])
            form = has_form(completion, item.row["rule"])
            marks = {"format_free": right, "accuracy": right and form, "form": form}
            verdicts.append(Verdict(marks, completion))
        return verdicts

    @override
    def reference_answer(self, item: Item) -> str | None:
        return item.row.get("answer")


def is_right(completion: str, rule: Mapping[str, Any]) -> bool:
    """Return whether an answer has the right content, in any form.

    All but the words of ``among`` is ignored, and so is what comes before a line ``#### X``. A
    single word must be the last of them; several must be all of them, in order. Where the rule has
    a ``count`` instead of ``words``, any so many different ones are right.

    Args:
        completion: The model's answer.
        rule: The rule: ``form``, ``among``, and ``words`` or ``count``; ``case`` if the case of
            letters counts.

    >>> rule = {"form": "final", "words": ["fox"], "among": ["fox", "hen", "cow"]}
    >>> is_right("Not the hen: it is a Fox!", rule), is_right("fox or hen", rule)
    (True, False)
    """
    final = _FINAL.search(completion)
    known = {word.lower() for word in rule["among"]}
    # Words may hold spaces or marks; longer ones come first.
    found = [w for w in re.findall(r"\w+", final[1] if final else completion) if w.lower() in known]
    if "count" in rule:
        return len(found) == len({word.lower() for word in found}) == rule["count"]
    right = list(rule["words"])
    if not rule.get("case"):
        found, right = [w.lower() for w in found], [w.lower() for w in right]
    return found[-1:] == right if len(right) == 1 else found == right


def has_form(completion: str, rule: Mapping[str, Any]) -> bool:
    r"""Return whether an answer has the form of the source's answers; space around is ignored.

    Forms: ``final``, a last line ``#### X`` of one word; ``words``, nothing but words of ``among``;
    ``record``, a line ``field: value`` for each of ``fields``; ``dashes`` and ``numbers``, a list
    with one of ``count`` words a line, each after "- ", or after "1. ", "2. " and so on.

    Raises:
        ValueError: If the form is unknown.

    >>> has_form("- cow\n- hen", {"form": "dashes", "count": 2, "among": ["fox", "hen", "cow"]})
    True
    """
    text, known = completion.strip(), {word.lower() for word in rule["among"]}
    lines = text.split("\n")
    match rule["form"]:
        case "final":
            return re.fullmatch(r"#### \S+", lines[-1]) is not None
        case "words":
            return bool(text) and {word.lower() for word in text.split(" ")} <= known
        case "record":
            starts = [f"{field}: " for field in rule["fields"]]
        case "dashes":
            starts = ["- "] * rule["count"]
        case "numbers":
            starts = [f"{place}. " for place in range(1, rule["count"] + 1)]
        case form:
            raise ValueError(
                "rule form must be 'final', 'words', 'record', 'dashes' or 'numbers', "
                f"got {form!r}."
            )
    return len(lines) == len(starts) and all(
        line.startswith(start) and line.removeprefix(start).lower() in known
        for line, start in zip(lines, starts, strict=True)
    )
