from typing import Any

from sft_lab.analysis.outcomes import graded_in_all, outcomes, same_items
from sft_lab.runs.results import ItemAnswer


def answer(
    name: str, completion: str = "a", prompt: str = "q", item: str = "", **marks: Any
) -> ItemAnswer:
    return ItemAnswer(name, item or name, marks, completion, prompt)


def test_an_item_has_the_mark_that_was_asked_for() -> None:
    assert outcomes([answer("a", flexible=True, strict=False)], "strict").marks == {"a": 0}


def test_an_item_of_several_parts_is_right_if_all_of_them_are() -> None:
    answers = [answer("a", strict=[True, True]), answer("b", strict=[True, False])]
    assert outcomes(answers, "strict").marks == {"a": 1, "b": 0}


def test_samples_of_an_item_and_turns_of_a_question_are_one() -> None:
    passed = [True, False, False, False]
    found = outcomes([answer("a", str(p), passed=p) for p in passed], "passed")
    assert found.marks == {"a": 0.25}
    assert found.answers == {"a": ("True", "False", "False", "False")}
    turns = [answer("81/1", item="81", rating=4.0), answer("81/2", item="81", rating=7.0)]
    assert outcomes(turns, "rating").marks == {"81": 5.5}


def test_an_answer_that_could_not_be_graded_has_no_mark() -> None:
    found = outcomes([answer("a", rating=None), answer("b", rating=4.0)], "rating")
    assert found.marks == {"b": 4}
    assert list(found.prompts) == ["a", "b"]


def test_items_are_the_same_by_id_and_prompt() -> None:
    one = outcomes([answer("a", strict=True), answer("b", strict=True)], "strict")
    other = outcomes([answer("b", strict=None), answer("a", strict=False)], "strict")
    asked = outcomes([answer("a", prompt="Q", strict=True)], "strict")
    assert same_items([one, other])
    assert not same_items([one, asked])
    assert graded_in_all([one, other]) == ["a"]
