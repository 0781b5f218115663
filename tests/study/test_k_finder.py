import pytest

from sft_lab.study.k_finder import Found, Trial, Verdict, judge, search

VALUES = ["0", "1/256", "1/64", "1/16", "1/4", "1/2", "1"]


def all_values(verdicts: dict[str, Verdict]) -> Found:
    found = search(VALUES, [0, 1], lambda value, seeds: verdicts[value])
    assert isinstance(found, Found)
    return found


@pytest.mark.parametrize("smallest", range(len(VALUES)))
def test_the_smallest_is_found_in_three_runs_of_seven(smallest: int) -> None:
    found = all_values({v: "kept" if i >= smallest else "not kept" for i, v in enumerate(VALUES)})
    assert found.value == VALUES[smallest]
    assert found.trials <= 3  # log2(7 + 1)


def test_where_none_keeps_there_is_no_value() -> None:
    found = all_values(dict.fromkeys(VALUES, "not kept"))
    assert (found.value, found.trials) == (None, 3)


def test_the_middle_is_asked_for_first_and_seeds_are_added_where_nothing_is_shown() -> None:
    told: dict[tuple[str, int], Verdict] = {}

    def verdict(value: str, seeds: list[int]) -> Verdict | None:
        return told.get((value, len(seeds)))

    def step() -> Trial | Found:
        return search(["1/64", "1/16", "1/4"], [5, 7], verdict)

    assert step() == Trial("1/16", 5)
    told["1/16", 1] = "not shown"
    assert step() == Trial("1/16", 7)
    told["1/16", 2] = "not shown"  # all seeds together show nothing: taken as not keeping
    assert step() == Trial("1/4", 5)
    told["1/4", 1] = "kept"
    assert step() == Found("1/4", {"1/16": "not shown", "1/4": "kept"}, trials=3)


def test_a_loss_must_be_shown_as_well_as_a_keeping() -> None:
    best = [[1.0] * 100 + [0.0] * 100]  # 50 of 100 in percent
    same = [[1.0] * 98 + [0.0] * 102]
    gone = [[1.0] * 20 + [0.0] * 180]
    assert judge({"math": (best, same)}, {"math": 0.9}, 0.9) == "kept"
    assert judge({"math": (best, gone)}, {"math": 0.9}, 0.9) == "not kept"
    # 92 of 100 kept, 90 asked for: two items say nothing.
    near = [[1.0] * 92 + [0.0] * 108]
    assert judge({"math": (best, near)}, {"math": 0.9}, 0.9) == "not shown"


def test_every_ability_must_be_kept() -> None:
    whole, gone = ([[1.0] * 50], [[1.0] * 50]), ([[1.0] * 50], [[0.0] * 50])
    limits = {"math": 0.9, "code": 0.9}
    assert judge({"math": whole, "code": whole}, limits, 0.9) == "kept"
    assert judge({"math": whole, "code": gone}, limits, 0.9) == "not kept"
