"""The section of a report on searches."""

import pytest

from sft_lab.analysis.measurements import Measurements
from sft_lab.analysis.study_results import SearchResult, StudyResults
from sft_lab.report.context import Context
from sft_lab.report.page import Section
from sft_lab.report.sections import Searches


def section(*searches: SearchResult) -> Section:
    results = StudyResults("s", {}, {}, [], searches)
    found = Searches().build(Context(results, [], Measurements(lambda *_: []), None, {}))
    assert found is not None
    return found


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


def test_a_search_is_described_with_its_cost_and_limits() -> None:
    built = section(found("1/32"))
    (sentence,) = built.text
    assert "keeps 87.5 % of math/accuracy: k = 1/32 was shown to, in 4 of the grid's" in sentence
    assert "21 runs, at 90 % confidence for each value and ability. A search over" in sentence
    assert "one seed" not in sentence
    assert "a value for which nothing was shown counts as not keeping them" in sentence
    assert built.tables[0].rows[0][1:4] == ["k = 1/32", "4", "21"]
    assert built.tables[0].rows[0][4] == "1/32: kept; 1/128: not shown"


def test_a_search_without_a_result_says_so() -> None:
    (sentence,) = section(found(None)).text
    assert "no value was shown to, in 4 of the grid's 21 runs, at 90 % confidence for" in sentence


@pytest.mark.parametrize("value", ["1/32", None])
def test_a_search_with_one_seed_says_that_it_is_about_items_only(value: str | None) -> None:
    (sentence,) = section(found(value, seeds=1)).text
    assert "ability, over items only: there is one seed, and another may differ." in sentence
