from sft_lab.study.report.searches import searches_section
from sft_lab.study.study_results import SearchResult


def found(value: str | None) -> SearchResult:
    return SearchResult(
        question="replay",
        arm="k_finder",
        axis="k",
        retention={"math/accuracy": 0.875},
        confidence=0.9,
        value=value,
        verdicts={"1/32": "kept", "1/128": "not shown"},
        trials=4,
        grid=21,
    )


def test_a_search_is_told_with_its_cost_and_what_it_does_not_say() -> None:
    section = searches_section([found("1/32")])
    (sentence,) = section.text
    assert "keeps 87.5 % of math/accuracy: k = 1/32 was shown to, at 90 % confidence" in sentence
    assert "4 of the grid's 21 runs" in sentence
    assert "a value of which nothing was shown counts as one that does not keep" in sentence
    assert section.tables[0].rows[0][1:4] == ["k = 1/32", "4", "21"]
    assert section.tables[0].rows[0][4] == "1/32: kept; 1/128: not shown"


def test_a_search_without_a_result_says_so() -> None:
    (sentence,) = searches_section([found(None)]).text
    assert "none was shown to, at 90 % confidence, in 4 of the grid's 21 runs" in sentence
