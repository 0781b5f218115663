"""HumanEval: functions to be written from their signature and docstring."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.code_answers import solution
from sft_lab.evaluation.code_benchmark import CodeBenchmark
from sft_lab.evaluation.sandbox import LevelChoice, Program

_CHAT = "Complete this Python function. Answer with the whole function in one code block.\n\n"


class HumanEval(CodeBenchmark):
    """HumanEval (Chen et al. 2021, "Evaluating Large Language Models Trained on Code").

    Rows are the data set's own; ids are its ``task_id``. From an answer the program is taken as
    ``code_answers.solution`` does, so chat answers and plain continuations are both graded.

    Args:
        path: See ``Benchmark``.
        max_new_tokens: See ``Benchmark``.
        sandbox: See ``CodeBenchmark``.
        prompt: How a model is asked: ``chat`` asks for the whole function in a code block,
            ``continuation`` gives it the row's prompt to go on with, without a chat template.
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.
        timeout_s: See ``CodeBenchmark``; 3 seconds in the source.
        memory_mb: See ``CodeBenchmark``.
    """

    row_fields: ClassVar[Mapping[str, type]] = {
        "task_id": str,
        "prompt": str,
        "entry_point": str,
        "test": str,
        "canonical_solution": str,
    }

    def __init__(
        self,
        path: str,
        max_new_tokens: int,
        sandbox: LevelChoice = "isolated",
        prompt: Literal["chat", "continuation"] = "chat",
        source: str | None = None,
        num_examples: int | None = None,
        timeout_s: float = 3.0,
        memory_mb: int = 1024,
    ) -> None:
        super().__init__(path, max_new_tokens, sandbox, source, num_examples, timeout_s, memory_mb)
        if prompt not in ("chat", "continuation"):
            raise RequestError(f"prompt must be 'chat' or 'continuation', got '{prompt}'.")
        self.prompt = prompt

    @override
    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "prompt": self.prompt}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        if not row["entry_point"].isidentifier():
            raise ValueError(f"key 'entry_point' must name a function, got {row['entry_point']!r}.")

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        if self.prompt == "continuation":
            return Item(row["task_id"], (), row, text=row["prompt"])
        asked = f"{_CHAT}```python\n{row['prompt'].strip()}\n```"
        return Item(row["task_id"], ({"role": "user", "content": asked},), row)

    @override
    def texts(self, item: Item) -> list[str]:
        prompt: str = item.row["prompt"]
        return [prompt, prompt + item.row["canonical_solution"]]

    @override
    def program(self, item: Item, completion: str) -> Program:
        entry_point: str = item.row["entry_point"]
        code = solution(item.row["prompt"], entry_point, completion)
        return Program(code, f"{item.row['test']}\ncheck({entry_point})", entry_point)
