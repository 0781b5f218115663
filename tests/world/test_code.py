import itertools
from typing import Any

import pytest

from sft_lab.world import code
from sft_lab.world.code import Task
from sft_lab.world.dice import Dice


def test_a_task_reads_as_prompt_body_snippet_and_tests() -> None:
    task = Task(
        structure="code/numbers/sum/square/even",
        difficulty=3,
        english="the sum of the squares of the numbers in items that are even",
        expression="sum(n * n for n in items if n % 2 == 0)",
        function="solve",
        arguments="items",
        inputs=[([1, 2, 4],), ([],)],
    )
    assert task.prompt == (
        "def solve(items):\n"
        '    """Return the sum of the squares of the numbers in items that are even."""\n'
    )
    assert task.solution == "    return sum(n * n for n in items if n % 2 == 0)"
    assert task.snippet == (
        "# the sum of the squares of the numbers in items that are even\n"
        "y = sum(n * n for n in items if n % 2 == 0)"
    )
    assert task.test == (
        "def check(candidate):\n"
        "    assert candidate([1, 2, 4]) == 20\n"
        "    assert candidate([]) == 0\n"
    )


def test_the_largest_of_an_empty_list_is_not_tested() -> None:
    task = Task("", 1, "the largest", "max(items)", "solve", "items", [([2, 3],), ([],)])
    assert task.test.count("assert") == 1


@pytest.mark.parametrize(
    ("english", "values", "expected"),
    [
        ("the sum of the squares of the numbers in {} that are even", [3, -4, 2], 20),
        ("the largest of the negatives of the numbers in {} that are odd", [3, 5, 8], -3),
        ("a list of the successors of the numbers in {} that are above ten", [10, 11], [12]),
        ("the sorted doubles of the numbers in {} that are positive", [3, -1, 2], [4, 6]),
        ("a set of the numbers in {} that are multiples of three", [3, 6, 3, 4], {3, 6}),
        (
            "the sorted predecessors of the numbers in {} that are odd and are below five",
            [7, 3],
            [2],
        ),
        ("a list of the last letters of the words in {} that contain o", ["dog", "fig"], ["g"]),
        (
            "the sorted lengths of the words in {} that have at most three letters and end with e",
            ["toe", "fig", "apple"],
            [3],
        ),
        ("the larger of a and b, negated", (3, 5), -5),
    ],
)
def test_tasks_do_what_their_english_says(english: str, values: Any, expected: Any) -> None:
    dice = Dice("test", 0)
    for benchmark in itertools.cycle((False, True)):
        task = code.task(dice, benchmark=benchmark)
        if task.english == english.format(task.arguments):
            break
    names = task.arguments.split(", ")
    bound = dict(zip(names, values if len(names) == 2 else [values], strict=True))
    assert eval(task.expression, bound) == expected


def test_every_canonical_solution_passes_and_has_several_tests() -> None:
    for item in code.items(200, seed=0):
        assert item["test"].count("assert") >= 2, item["structure"]
        program = f"{item['prompt']}{item['canonical_solution']}\n\n{item['test']}"
        namespace: dict = {}
        exec(program, namespace)
        namespace["check"](namespace[item["entry_point"]])


def test_few_other_solutions_of_the_benchmark_pass_an_item() -> None:
    items = code.items(60, seed=0)
    by_argument: dict[str, dict[str, str]] = {}
    for item in items:
        arguments = item["prompt"].split("(")[1].split(")")[0]
        by_argument.setdefault(arguments, {})[item["structure"]] = item["canonical_solution"]
    tried = passed = 0
    for item in items:
        arguments = item["prompt"].split("(")[1].split(")")[0]
        for structure, body in by_argument[arguments].items():
            if structure == item["structure"]:
                continue
            tried += 1
            namespace: dict = {}
            exec(f"{item['prompt']}{body}\n\n{item['test']}", namespace)
            try:
                namespace["check"](namespace[item["entry_point"]])
            except Exception:
                continue
            passed += 1  # max(n - 1 for n in items if n > 10), say, for max(n - 1 for n in items)
    assert tried > 300
    assert passed < tried / 100
