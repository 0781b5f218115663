from typing import Any

from sft_lab.analysis.outcomes import graded_in_all, outcomes, same_items
from sft_lab.runs.results import ItemAnswer


def answer(item: str, completion: str = "a", prompt: str = "q", **marks: Any) -> ItemAnswer:
    return ItemAnswer(item, marks, completion, prompt)


def test_the_mark_of_the_first_scores_name_counts() -> None:
    found = outcomes([answer("a", flexible=True, strict=False)], "strict", score=0.0)
    assert found is not None
    assert found.marks == {"a": 0}


def test_else_the_first_mark_does_and_all_of_its_parts() -> None:
    answers = [answer("a", strict=[True, True]), answer("b", strict=[True, False])]
    found = outcomes(answers, "prompt_strict", score=0.5)
    assert found is not None
    assert found.marks == {"a": 1, "b": 0}


def test_a_mark_stands_for_a_score_whose_name_ends_with_it() -> None:
    answers = [answer("a", strict=[False], loose=[True]), answer("b", strict=[True], loose=[True])]
    found = outcomes(answers, "prompt_loose", score=1.0)
    assert found is not None
    assert found.marks == {"a": 1, "b": 1}


def test_samples_of_an_item_and_turns_of_a_question_are_one() -> None:
    passed = [True, False, False, False]
    found = outcomes([answer("a", str(p), passed=p) for p in passed], "pass_at_1", score=0.25)
    assert found is not None
    assert found.marks == {"a": 0.25}
    assert found.answers == {"a": ("True", "False", "False", "False")}
    turns = [answer("MT-Bench/81/1", rating=4.0), answer("MT-Bench/81/2", rating=7.0)]
    found = outcomes(turns, "mean", score=5.5)
    assert found is not None
    assert found.marks == {"MT-Bench/81": 5.5}


def test_what_could_not_be_graded_has_no_mark() -> None:
    found = outcomes([answer("a", rating=None), answer("b", rating=4.0)], "mean", score=4.0)
    assert found is not None
    assert found.marks == {"b": 4}
    assert list(found.prompts) == ["a", "b"]


def test_a_score_that_is_no_mean_of_marks_has_no_items() -> None:
    assert outcomes([answer("a", perplexity=2.0), answer("b", perplexity=8.0)], "p", 4.0) is None


def test_items_are_the_same_by_id_and_prompt() -> None:
    one = outcomes([answer("a", strict=True), answer("b", strict=True)], "strict", 1.0)
    other = outcomes([answer("b", strict=None), answer("a", strict=False)], "strict", 0.0)
    asked = outcomes([answer("a", prompt="Q", strict=True)], "strict", 1.0)
    assert one is not None
    assert other is not None
    assert asked is not None
    assert same_items([one, other])
    assert not same_items([one, asked])
    assert graded_in_all([one, other]) == ["a"]
