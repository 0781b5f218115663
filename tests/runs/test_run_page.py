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
    conclusion="Forgetting: <math> kept.",
    points=POINTS,
    abilities=ABILITIES,
    stages=[("one", 10), ("two", 20)],
)


def test_the_description_is_as_high_as_mlflow_shows() -> None:
    conclusion, empty, *table = PAGE.description().splitlines()
    # Without a paragraph's margin, then a header and a row an ability: 100 pixels for three.
    assert (conclusion, empty) == ("<div>Forgetting: &lt;math&gt; kept.</div>", "")
    assert [row.replace("&nbsp;", "") for row in table] == [
        "| % | base | one | step 15 |",
        "| --- | ---: | ---: | ---: |",  # boundaries and the newest evaluation
        "| math | 0.0 [0-50] | 90.0 [45-95] | 40.0 [20-70] |",
        "| code | 0.0 [0-50] | 50.0 [25-75] | 50.0 [25-75] |",
        "| chat | 0.0 [0-50] | 0.0 [0-50] | 20.0 [10-60] |",
    ]


def test_the_page_stands_alone_and_is_the_same_each_time() -> None:
    page = PAGE.html()
    assert page == PAGE.html()
    assert "<b>run" not in page
    assert page.count("<tr>") == 1 + len(POINTS)
    assert "<svg" in page
    assert "<script" not in page
    assert PAGE.png().startswith(b"\x89PNG")
