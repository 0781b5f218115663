from collections import Counter
from typing import Any

import pytest

from sft_lab.training.order import RowRef
from sft_lab.training.plan import StagePlan, plan_stage
from sft_lab.training.replan import replan, split_passes

LENGTHS = {"general": [3] * 40, "math": [5] * 16}


def planned(replayed: int, epochs: int = 1) -> StagePlan:
    """40 rows of general with so many of math, 4 a step."""
    rows = {"general": range(40), "math": range(replayed)}
    return plan_stage("chat", rows, LENGTHS, batch_size=4, seed=0, epochs=epochs)


def again(plan: StagePlan, step: int, replayed: int, **changed: object) -> StagePlan:
    settings: dict[str, Any] = {"num_tokens": LENGTHS, "batch_size": 4, "seed": 0, **changed}
    settings.setdefault("steered", ["math"])
    return replan(plan, step, {"math": range(replayed)}, **settings)


def rows(plan: StagePlan, source: str, first_step: int = 0) -> list[int]:
    refs = (ref for window in plan.windows[first_step:] for refs in window for ref in refs)
    return [ref.index for ref in refs if ref.source == source]


def test_what_is_trained_stays_and_no_other_row_is_lost() -> None:
    before = planned(0)  # ten steps of four
    after = again(before, 3, 16)
    assert after.windows[:3] == before.windows[:3]
    # The same rows of general in the same order, 28 of them still to come.
    assert rows(after, "general") == rows(before, "general")
    # 28 of 40 are left, so of 16 rows a pass 11.2 are due, rounded up: the first of the rank order.
    assert sorted(rows(after, "math")) == list(range(12))
    assert after.num_steps == 3 + (28 + 12) / 4
    assert [len(window) for window in after.windows] == [4] * 13


def test_a_larger_share_takes_all_that_a_smaller_one_takes() -> None:
    plan = planned(4)
    for step in (1, 5, 9):
        assert len(rows(again(plan, step, 0), "math", step)) == 0
        assert len(rows(again(plan, step, 1), "math", step)) == 1  # however little is left
        found = [set(rows(again(plan, step, n), "math")) for n in (0, 1, 4, 16)]
        assert found[0] <= found[1] <= found[2] <= found[3]  # over the whole pass


def test_rows_that_the_pass_has_not_had_come_first() -> None:
    lengths = {"general": [3] * 1800, "math": [5] * 1792}
    settings: dict[str, Any] = {"num_tokens": lengths, "batch_size": 8, "seed": 0}
    mixture = {"general": range(1800), "math": range(7)}
    plan = plan_stage("chat", mixture, lengths, batch_size=8, seed=0, epochs=1)
    for step, replayed in ((61, 28), (121, 112), (181, 28)):  # 1/256, 1/64, 1/16, 1/64
        had = set(rows(plan, "math")[: len(rows(plan, "math")) - len(rows(plan, "math", step))])
        plan = again(plan, step, replayed, **settings)
        due = rows(plan, "math", step)
        fresh = set(range(replayed)) - had
        assert len(fresh.intersection(due)) == min(len(fresh), len(due))
        assert max(Counter(due).values()) == 1
    assert max(Counter(rows(plan, "math")).values()) == 1


def test_where_all_have_come_those_that_came_least_come_again() -> None:
    passed = planned(2)  # by step 9 both have come
    assert sorted(rows(passed, "math")[:2]) == [0, 1]
    assert rows(again(passed, 10, 2), "math", 10) == [0]
    # Where a share has a row twice, it comes as often as the share has it.
    twice = replan(
        planned(0), 0, {"math": [0, 1, 0, 1]}, steered=["math"], num_tokens=LENGTHS,
        batch_size=4, seed=0,
    )  # fmt: skip
    assert Counter(rows(twice, "math")) == {0: 2, 1: 2}


def test_the_rest_is_spread_evenly() -> None:
    after = again(planned(0), 3, 16)
    # 12 of math in 10 steps: each holds one, give or take a jitter that moves it to the next.
    counts = [sum(refs[0].source == "math" for refs in w) for w in after.windows[3:]]
    for start in range(len(counts) - 3):
        assert 3 <= sum(counts[start : start + 4]) <= 7


def test_a_lowered_share_leaves_what_was_trained_of_the_larger_one() -> None:
    before = planned(16)
    after = again(before, 7, 0)
    assert rows(after, "math") == rows(before, "math")[: len(rows(after, "math"))]
    assert rows(after, "math", 7) == []
    assert Counter(rows(after, "general")) == Counter(range(40))


def test_passes_stay_apart() -> None:
    before = planned(0, epochs=3)  # ten steps each
    after = again(before, 14, 8)
    assert after.passes[0] == before.passes[0]
    for index in (0, 1, 2):
        refs = [ref for window in after.passes[index] for bins in window for ref in bins]
        assert sorted(r.index for r in refs if r.source == "general") == list(range(40))
    counts = [
        Counter(ref.source for w in windows for bins in w for ref in bins)["math"]
        for windows in after.passes
    ]
    # Of the second pass 24 of 40 rows are left: ceil(8 * 24 / 40) = 5.
    assert counts == [0, 5, 8]


def test_a_source_that_is_not_decided_on_keeps_the_rows_it_had_left() -> None:
    rows_of_three = {"general": range(40), "math": range(4), "code": range(8)}
    lengths = {**LENGTHS, "code": [2] * 8}
    before = plan_stage("chat", rows_of_three, lengths, batch_size=4, seed=0, epochs=1)
    after = again(before, 4, 16, steered=["math", "code"], num_tokens=lengths)
    assert rows(after, "code") == rows(before, "code")
    # Code is steered too, so it does not count as what measures the stage.
    left = len(rows(before, "general", 4))
    assert len(rows(after, "math", 4)) == -(-16 * left // 40)


def test_a_plan_can_be_made_anew_again_and_depends_on_nothing_else() -> None:
    once = again(again(planned(0), 3, 16), 8, 4)
    assert once == again(again(planned(0), 3, 16), 8, 4)
    assert once.windows[:8] == again(planned(0), 3, 16).windows[:8]
    assert once.windows != again(again(planned(0), 3, 16), 8, 4, seed=1).windows
    assert once.lengths[:2] == ((0, 10), (3, 13))
    assert once.lengths[2] == (8, once.num_steps)


def test_nothing_is_replayed_where_nothing_else_is_left() -> None:
    general = [[[RowRef("general", n)] for n in range(2)]]
    math = [[[RowRef("math", n)] for n in range(2)]]
    plan = StagePlan("chat", [[*general, *math]])
    after = again(plan, 1, 16)
    assert after.passes == [general]


def test_packed_rows_stay_packed() -> None:
    mixture = {"general": range(40), "math": range(4)}
    before = plan_stage("chat", mixture, LENGTHS, batch_size=2, seed=0, epochs=1, packed_length=10)
    after = again(before, 3, 16, batch_size=2, packed_length=10)
    assert after.windows[:3] == before.windows[:3]
    assert Counter(rows(after, "general")) == Counter(range(40))
    lengths = [sum(LENGTHS[r.source][0] for r in refs) for w in after.windows for refs in w]
    assert max(lengths) <= 10
    assert min(lengths[:-1]) >= 8  # 3 + 5, 3 + 3 + 3, or 5 + 5: no room for another row


@pytest.mark.parametrize(
    ("cuts", "sizes"),
    [(range(0), [3, 2]), (range(2, 99, 2), [2, 1, 1, 1]), (range(3, 99, 9), [3, 2])],
)
def test_passes_are_cut_after_steps(cuts: range, sizes: list[int]) -> None:
    passes = [[[[RowRef("a", n)]] for n in range(3)], [[[RowRef("a", n)]] for n in range(2)]]
    parts = split_passes(passes, cuts)
    assert [len(part) for part in parts] == sizes
    assert [w for part in parts for w in part] == [w for windows in passes for w in windows]
