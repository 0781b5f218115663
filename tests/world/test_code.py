import pytest

from sft_lab.world import code
from sft_lab.world.code import Task


def test_a_task_reads_as_prompt_body_snippet_and_tests() -> None:
    task = Task(
        structure="code/numbers/sum/square/even",
        english="the sum of the squares of the even numbers in items",
        expression="sum(n * n for n in items if n % 2 == 0)",
        function="solve",
        arguments="items",
        inputs=[([1, 2, 4],), ([],)],
    )
    assert task.prompt == (
        'def solve(items):\n    """Return the sum of the squares of the even numbers in items."""\n'
    )
    assert task.solution == "    return sum(n * n for n in items if n % 2 == 0)"
    assert task.snippet == (
        "# the sum of the squares of the even numbers in items\n"
        "y = sum(n * n for n in items if n % 2 == 0)"
    )
    assert task.test == (
        "def check(candidate):\n"
        "    assert candidate([1, 2, 4]) == 20\n"
        "    assert candidate([]) == 0\n"
    )


def test_the_largest_of_an_empty_list_is_not_tested() -> None:
    task = Task("", "the largest", "max(items)", "solve", "items", [([2, 3],), ([],)])
    assert task.test.count("assert") == 1


@pytest.mark.parametrize(
    ("structure", "values", "expected"),
    [
        ("code/numbers/sum/square/even", [3, -4, 2], 20),
        ("code/numbers/max/minus/odd", [3, 5, 8], -3),
        ("code/numbers/min/abs/negative", [-7, -2, 1], 2),
        ("code/numbers/list/next/big", [10, 11, 30], [12, 31]),
        ("code/numbers/sorted/double/positive", [3, -1, 2], [4, 6]),
        ("code/numbers/set/same/three", [3, 6, 3, 4], {3, 6}),
        ("code/words/list/first/long", ["river", "fig", "plum"], ["r", "p"]),
        ("code/words/sorted/reverse/short", ["fig", "ant", "river"], ["gif", "tna"]),
        ("code/words/set/length/a", ["apple", "about", "fig"], {5}),
    ],
)
def test_parts_mean_what_their_english_says(structure: str, values: list, expected: object) -> None:
    _, group, reduce, mapped, kept = structure.split("/")
    maps, filters = (
        (code.MAPS, code.FILTERS) if group == "numbers" else (code.WORD_MAPS, code.WORD_FILTERS)
    )
    variable = "n" if group == "numbers" else "w"
    each = f"{maps[mapped][1]} for {variable} in items{filters[kept][1]}"
    assert eval(code.REDUCES[reduce][1].format(each), {"items": values}) == expected


def test_every_canonical_solution_passes_and_has_several_tests() -> None:
    for item in code.items(200, seed=0):
        assert item["test"].count("assert") >= 2, item["structure"]
        program = f"{item['prompt']}{item['canonical_solution']}\n\n{item['test']}"
        namespace: dict = {}
        exec(program, namespace)
        namespace["check"](namespace[item["entry_point"]])


def test_no_other_solution_of_the_benchmark_passes_an_item_by_luck() -> None:
    items = code.items(60, seed=0)
    by_argument: dict[str, dict[str, str]] = {}
    for item in items:
        arguments = item["prompt"].split("(")[1].split(")")[0]
        by_argument.setdefault(arguments, {})[item["structure"]] = item["canonical_solution"]
    for item in items:
        arguments = item["prompt"].split("(")[1].split(")")[0]
        for structure, body in by_argument[arguments].items():
            if structure == item["structure"]:
                continue
            namespace: dict = {}
            exec(f"{item['prompt']}{body}\n\n{item['test']}", namespace)
            try:
                namespace["check"](namespace[item["entry_point"]])
            except Exception:
                continue
            raise AssertionError(f"{body} passes {item['structure']}")
