import json
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sft_lab.analysis.study_results import SearchResult
from sft_lab.metrics.score import Score
from sft_lab.report.sections import searches_section
from sft_lab.runs.results import Point
from sft_lab.study import search


def found(value: str | None, seeds: int = 3) -> SearchResult:
    return SearchResult(
        question="replay",
        arm="k_finder",
        axis="k",
        retention={"math/accuracy": 0.875},
        confidence=0.9,
        value=value,
        retained={"1/32": "kept", "1/128": "not shown"},
        trials=4,
        grid=21,
        seeds=seeds,
    )


def test_a_search_is_told_with_its_cost_and_what_it_does_not_say() -> None:
    section = searches_section([found("1/32")])
    (sentence,) = section.text
    assert "keeps 87.5 % of math/accuracy: k = 1/32 was shown to, in 4 of the grid's" in sentence
    assert "21 runs, at 90 % confidence for each value and ability. A search of several" in sentence
    assert "one seed" not in sentence
    assert "a value of which nothing was shown counts as one that does not keep" in sentence
    assert section.tables[0].rows[0][1:4] == ["k = 1/32", "4", "21"]
    assert section.tables[0].rows[0][4] == "1/32: kept; 1/128: not shown"


def test_a_search_without_a_result_says_so() -> None:
    (sentence,) = searches_section([found(None)]).text
    assert "none was shown to, in 4 of the grid's 21 runs, at 90 % confidence for" in sentence


@pytest.mark.parametrize("value", ["1/32", None])
def test_a_search_with_one_seed_says_that_it_is_about_items_only(value: str | None) -> None:
    (sentence,) = searches_section([found(value, seeds=1)]).text
    assert "ability, over items only: there is one seed, and another may differ." in sentence


def test_marks_are_of_the_items_that_every_evaluation_could_grade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A judge could not be read at one place of each evaluation, a different one.
    ratings: dict[str, dict[int, list[float | None]]] = {
        "one": {0: [1, 1, 1, 1], 5: [9, None, 7, 6], 9: [8, 7, None, 5]},
        "two": {0: [1, 1, 1, 1], 5: [4, 3, 2, 1], 9: [3, 2, 1, 9]},
    }

    def point(step: int, found: list[float | None]) -> Point:
        mean = fmean(rating for rating in found if rating is not None)
        return Point(step, "s", {"mt_bench/mean": Score(mean, 1, 10, len(found))})

    def artifact_text(run_id: str, path: str) -> str:
        step = int(path.split("/")[1].removeprefix("step_"))
        columns = ["id", "rating", "reason", "completion", "prompt"]
        rows = [[f"MT-Bench/{n}/1", r, "", "a", "q"] for n, r in enumerate(ratings[run_id][step])]
        return json.dumps({"columns": columns, "data": rows})

    def read_result(store: Any, run_id: str) -> Any:
        points = [point(step, found) for step, found in ratings[run_id].items()]
        return SimpleNamespace(run_id=run_id, boundaries=points)

    monkeypatch.setattr(search, "read_result", read_result)
    client = SimpleNamespace(get_run=lambda run_id: run_id)
    store = cast(Any, SimpleNamespace(client=client, artifact_text=artifact_text))
    found = search.retained_marks(store, ["one", "two"], {"mt_bench/mean": 0.9})
    assert found == {"mt_bench/mean": ([[9, 6], [4, 1]], [[8, 5], [3, 9]])}
