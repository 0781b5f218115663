"""MBPP: short Python programs from one sentence and three tests."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from typing_extensions import override

from sft_lab.config.ranges import PositiveFloat, PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.benchmarks.code_answers import solution
from sft_lab.evaluation.benchmarks.code_benchmark import CodeBenchmark
from sft_lab.evaluation.benchmarks.python_code import parses
from sft_lab.evaluation.sandbox.sandbox import Program

_EXAMPLE_IDS = (2, 3, 4)
_TEST_IDS = range(11, 511)
_BEGIN, _DONE = "[BEGIN]", "[DONE]"


class MBPP(CodeBenchmark):
    """MBPP (Austin et al. 2021, "Program Synthesis with Large Language Models"), its test split.

    Rows are the data set's own; the item of ``task_id`` n is ``MBPP/n``. Of a file with all splits,
    only the test split is used: ``task_id`` 11 to 510.

    Args:
        path: See ``Benchmark``.
        max_new_tokens: See ``Benchmark``.
        prompt: ``three_shot`` is the paper's prompt (section 3.2), with the rows of ``task_id`` 2,
            3 and 4 as solved examples and without a chat template; the answer ends at ``[DONE]``.
            In it ``pass_at_1_official`` runs the answer up to there as it is, while ``pass_at_1``
            extracts the program. ``chat`` asks one question, the task with its tests, and for no
            form.
        timeout_s: Wall time of one program in seconds; one of the reference solutions needs four.
        kwargs: See ``CodeBenchmark``.
    """

    published = "google-research-datasets/mbpp"
    hub_split = "prompt+test"  # the examples of ``three_shot`` are a split of their own
    hub_subset = "full"
    local_file = "mbpp/mbpp.jsonl of github.com/google-research/google-research"
    row_fields: ClassVar[Mapping[str, type]] = {
        "task_id": int,
        "code": str,
        "test_list": list,
    }
    right_row: ClassVar[Mapping[str, Any]] = {
        "task_id": 11,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(2, 2) == 4"],
    }

    def __init__(
        self,
        path: str,
        max_new_tokens: PositiveInt,
        prompt: Literal["three_shot", "chat"] = "chat",
        timeout_s: PositiveFloat = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, max_new_tokens, timeout_s=timeout_s, **kwargs)
        if prompt not in ("three_shot", "chat"):
            raise RequestError(f"prompt must be 'three_shot' or 'chat', got '{prompt}'.")
        self.prompt = prompt
        if prompt == "three_shot":
            self.score_names = ("pass_at_1", "pass_at_1_official")
            self.strict_score, self.form_mark = "pass_at_1_official", "form"

    @override
    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "prompt": self.prompt}

    @override
    def agrees_with(self) -> Mapping[str, str]:
        if self.prompt == "chat":
            return {}
        return {"pass_at_1_official": "section 3.2 of arXiv 2108.07732"}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if not isinstance(_text(row), str):
            raise ValueError("key 'text' (or 'prompt', in the sanitized set) must be a string.")
        tests = row["test_list"]
        if not tests or not all(isinstance(test, str) for test in tests):
            raise ValueError(f"key 'test_list' must be a list of assert lines, got {tests!r}.")
        for key in ("test_setup_code", "test_imports"):
            lines = row.get(key, "")
            if not isinstance(lines, str) and not (
                isinstance(lines, list) and all(isinstance(line, str) for line in lines)
            ):
                raise ValueError(f"key '{key}' must be a string, or a list of them, got {lines!r}.")
        try:
            function_name(row["code"], tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            raise ValueError(f"key 'code' must be Python: {fault}.") from fault

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        item_id = f"MBPP/{row['task_id']}"
        asked = {"role": "user", "content": _task(row)}
        return Item(item_id, (asked,), row)

    @override
    def _read(self) -> Iterator[Item]:
        everything = list(super()._read())
        if self.prompt == "three_shot":
            shown = {item.row["task_id"]: item.row for item in everything}
            if missing := [task_id for task_id in _EXAMPLE_IDS if task_id not in shown]:
                raise RequestError(
                    f"{self.path} has no task_id {missing[0]}, which is in the three-shot prompt; "
                    "use the whole data set, or set prompt: chat."
                )
            examples = "".join(_example(shown[task_id]) for task_id in _EXAMPLE_IDS)
            everything = [
                Item(item.id, (), item.row, text=f"{examples}{_task(item.row)}\n{_BEGIN}\n")
                for item in everything
            ]
        tested = [item for item in everything if item.row["task_id"] in _TEST_IDS]
        yield from tested or everything

    @override
    def texts(self, item: Item) -> list[str]:
        text = _text(item.row)
        return [text, f"{text}\n{item.row['code']}"]

    @override
    def program(self, item: Item, completion: str) -> Program:
        answer = completion.partition(_DONE)[0]
        answer = answer.partition(_BEGIN)[2] or answer
        name = function_name(item.row["code"], item.row["test_list"])
        return Program(solution("", name, answer), _test(item.row), name)

    @override
    def official_program(self, item: Item, completion: str) -> Program | None:
        if self.prompt == "chat":
            return None
        name = function_name(item.row["code"], item.row["test_list"])
        return Program(completion.partition(_DONE)[0], _test(item.row), name)

    @override
    def has_form(self, item: Item, completion: str) -> bool | None:
        if self.prompt == "chat":
            return None
        code = completion.partition(_DONE)[0]
        return _BEGIN not in code and parses(code)

    @override
    def reference_answer(self, item: Item) -> str:
        code = _code(item.row)
        return f"{code}\n{_DONE}" if self.prompt == "three_shot" else code


def function_name(code: str, tests: Sequence[str]) -> str:
    """Return the name that a solution must define: the reference's last one that tests use."""
    called = {name for test in tests for name in re.findall(r"[A-Za-z_]\w*", test)}
    defined = [
        node.name
        for node in ast.parse(code.replace("\r\n", "\n")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    return next((name for name in reversed(defined) if name in called), "")


def _test(row: Mapping[str, Any]) -> str:
    return "\n".join([*_setup(row), *row["test_list"]])


def _text(row: Mapping[str, Any]) -> Any:
    return row.get("text", row.get("prompt"))


def _task(row: Mapping[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {_text(row)} "
        f"Your code should pass these tests:\n\n{tests}"
    )


def _code(row: Mapping[str, Any]) -> str:
    code: str = row["code"]
    return code.replace("\r\n", "\n").strip()


def _example(row: Mapping[str, Any]) -> str:
    return f"{_task(row)}\n{_BEGIN}\n{_code(row)}\n{_DONE}\n\n"


def _setup(row: Mapping[str, Any]) -> list[str]:
    """Return the lines before the tests; the sanitized set has a list of imports instead."""
    given = [row.get("test_setup_code", ""), row.get("test_imports", "")]
    return [line for part in given for line in ([part] if isinstance(part, str) else part) if line]
