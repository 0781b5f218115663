import re

from sft_lab.world import math
from sft_lab.world.math import Part, Problem


def test_a_plot_becomes_problem_solution_and_story() -> None:
    problem = Problem(
        structure="math/own/lose/price",
        parts=(
            Part("Ben has 9 pens.", (), 9),
            Part("Ben loses 4.", ("9-4=5",), 5),
            Part("Ben sells the pens for 2 dollars each.", ("5*2=10",), 10),
        ),
        question="How many dollars does Ben get?",
    )
    assert problem.prompt == (
        "Ben has 9 pens. Ben loses 4. Ben sells the pens for 2 dollars each. "
        "How many dollars does Ben get?"
    )
    assert problem.solution == "9-4=5. 5*2=10.\n#### 10"
    assert problem.story == (
        "Ben has 9 pens. Ben loses 4. So 9-4=5. Ben sells the pens for 2 dollars each. So 5*2=10."
    )


def test_every_equation_is_true_and_the_last_one_gives_the_answer() -> None:
    for row in math.rows(300, seed=1):
        solution = row["messages"][1]["content"]
        steps, answer = solution.split("\n#### ")
        equations = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", steps)
        assert 1 <= len(equations) <= 4
        for left, sign, right, value in equations:
            a, b, c = int(left), int(right), int(value)
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[sign]
            assert 1 <= c <= math.MAX_VALUE
        assert equations[-1][3] == answer


def test_no_problem_is_repeated() -> None:
    prompts = [row["messages"][0]["content"] for row in math.rows(500, seed=0)]
    assert len(set(prompts)) == 500


def test_items_end_with_a_question_and_carry_the_answer() -> None:
    item = math.items(1, seed=0)[0]
    assert item["id"] == "world_math/0"
    assert item["messages"][-1]["role"] == "user"
    assert item["messages"][-1]["content"].endswith("?")
    assert item["solution"].endswith(f"#### {item['answer']}")
    assert item["difficulty"] == item["solution"].count("=")
