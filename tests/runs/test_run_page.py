"""Test what a run's page says about abilities by stage."""

from sft_lab.metrics.score import Score
from sft_lab.runs.evaluations import Point
from sft_lab.runs.run_page import RunPage

ABILITIES = {"math": "gsm8k/flexible", "code": "mbpp/pass", "chat": "ifeval/strict"}


def point(step: int, after: str | None, **values: float) -> Point:
    scores = {
        ABILITIES[name]: Score(value, value / 2, (1 + value) / 2, 100)
        for name, value in values.items()
    }
    return Point(step, after, scores)


POINTS = [
    point(0, None, math=0.0, code=0.0, chat=0.0),
    point(5, None, math=0.5, code=0.1, chat=0.0),
    point(10, "one", math=0.9, code=0.5, chat=0.0),
    point(15, None, math=0.4, code=0.5, chat=0.2),
]
PAGE = RunPage(
    name="<b>run</b>",
    points=POINTS,
    abilities=ABILITIES,
    stages=[("one", 10), ("two", 20)],
    changes={"forgetting/math": 0.5, "forgetting/code": 0.0, "ability/chat": 0.2},
)


def test_the_description_opens_with_what_was_forgotten() -> None:
    conclusion, _, *table = PAGE.description("0123456789abcdef").splitlines()
    assert conclusion == (
        "At step 15 of 20: **math has forgotten 50 points**; code: nothing forgotten; "
        "chat: not trained yet, or not above chance."
    )
    assert table[0] == "| after | step | math | code | chat |"
    assert table[1] == "| --- | ---: | ---: | ---: | ---: |"
    # Boundaries and the newest evaluation; step 5 is on the page only.
    assert [row.split(" | ")[:3] for row in table[2:5]] == [
        ["| base", "0", "0.0 [0.0, 50.0]"],
        ["| one", "10", "90.0 [45.0, 95.0]"],
        ["| -", "15", "40.0 [20.0, 70.0]"],
    ]
    assert "sft-lab compare 01234567" in "\n".join(table)


def test_the_page_stands_alone_and_is_the_same_each_time() -> None:
    page = PAGE.html()
    assert page == PAGE.html()
    assert "<b>run" not in page
    assert page.count("<tr>") == 1 + len(POINTS)
    assert "<svg" in page
    assert "<script" not in page
    assert PAGE.png().startswith(b"\x89PNG")
