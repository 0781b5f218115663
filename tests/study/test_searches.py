import pytest

from sft_lab.study.report.searches import searches_section
from sft_lab.study.study_results import SearchResult


def found(value: str | None, seeds: int = 3) -> SearchResult:
    return SearchResult(
        question="replay",
        arm="k_finder",
        axis="k",
        retention={"math/accuracy": 0.85},
        confidence=0.9,
        value=value,
        verdicts={"1/32": "kept", "1/128": "not shown"},
        trials=4,
        grid=21,
        seeds=seeds,
    )


def test_a_search_is_told_with_its_cost_and_what_it_does_not_say() -> None:
    section = searches_section([found("1/32")])
    (sentence,) = section.text
    assert "keeps 85% of math/accuracy: k = 1/32 was shown to, in 4 of the grid's 21 r" in sentence
    assert "uns, at 90% confidence for each value and ability. A search of several val" in sentence
    assert "one seed" not in sentence
    assert "a value of which nothing was shown counts as one that does not keep" in sentence
    assert section.tables[0].rows[0][1:4] == ["k = 1/32", "4", "21"]
    assert section.tables[0].rows[0][4] == "1/32: kept; 1/128: not shown"


def test_a_search_without_a_result_says_so() -> None:
    (sentence,) = searches_section([found(None)]).text
    assert "none was shown to, in 4 of the grid's 21 runs, at 90% confidence for" in sentence


@pytest.mark.parametrize("value", ["1/32", None])
def test_a_search_with_one_seed_says_that_it_is_about_items_only(value: str | None) -> None:
    (sentence,) = searches_section([found(value, seeds=1)]).text
    assert "ability, over items only: there is one seed, and another may differ." in sentence
