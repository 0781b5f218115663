import math
from dataclasses import replace

import pytest

from sft_lab.training.schedule import Schedule, StepSize, stage_lr
from sft_lab.training.stage import Stage

STAGE = Stage({"math": 1}, lr=1.0, epochs=1)


def steps(*tokens: int) -> list[StepSize]:
    return [StepSize(samples=2, tokens=count) for count in tokens]


@pytest.fixture
def schedule() -> Schedule:
    """Ten steps in two passes of six and four, then four steps in one pass."""
    first = replace(STAGE, lr=4.0, warmup_ratio=0.2, lr_schedule="cosine")
    second = replace(STAGE, lr=3.0, warmup_ratio=0.0, lr_schedule="linear")
    passes = [steps(1, 2, 3, 4, 5, 6), steps(7, 8, 9, 10)]
    return Schedule([("a", first, passes), ("b", second, [steps(1, 1, 1, 1)])])


def test_stages_lie_end_to_end(schedule: Schedule) -> None:
    assert [(s.first_step, s.end_step, s.first_pass) for s in schedule.stages] == [
        (0, 10, 0),
        (10, 14, 2),
    ]
    assert (schedule.num_steps, schedule.num_passes) == (14, 3)
    assert schedule.boundaries == [10, 14]


def test_passes_and_steps_belong_to_their_stage(schedule: Schedule) -> None:
    assert [schedule.stage_of_pass(index) for index in range(3)] == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(IndexError, match="pass 3 comes after the last one, 2"):
        schedule.stage_of_pass(3)
    assert [schedule.stage_of_step(step) for step in (0, 9, 10, 13, 14)] == [0, 0, 1, 1, 1]


def test_seen_sums_over_stages(schedule: Schedule) -> None:
    assert schedule.seen(0) == (0, 0)
    assert schedule.seen(2) == (4, 3)
    assert schedule.seen(10) == (20, 55)
    assert schedule.seen(14) == (28, 59)


def test_the_rate_by_hand_over_two_stages(schedule: Schedule) -> None:
    # Warm-up of 2 of 10 steps to 4, then half a cosine over the other 8.
    assert schedule.lr(0) == pytest.approx(2.0)
    assert schedule.lr(1) == pytest.approx(4.0)
    assert schedule.lr(2) == pytest.approx(4.0)
    assert schedule.lr(4) == pytest.approx(2 * (1 + math.sqrt(0.5)))  # a quarter of the way
    assert schedule.lr(6) == pytest.approx(2.0)
    assert schedule.lr(9) == pytest.approx(2 * (1 + math.cos(math.pi * 7 / 8)))
    # Linear from 3 to 0 over four steps; after the last step, where nothing is trained, 0.
    assert [schedule.lr(step) for step in range(10, 15)] == pytest.approx([3, 2.25, 1.5, 0.75, 0])


def test_a_constant_rate_stays_where_the_warm_up_ends() -> None:
    stage = replace(STAGE, lr=2.0, warmup_ratio=0.5, lr_schedule="constant")
    assert [stage_lr(stage, step, 4) for step in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_a_stage_may_be_all_warm_up() -> None:
    stage = replace(STAGE, warmup_ratio=1.0)
    assert [stage_lr(stage, step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("ratio", "num_steps", "warmup"), [(0.07, 100, 7), (0.1, 11, 2)])
def test_warm_up_rounds_up_exactly(ratio: float, num_steps: int, warmup: int) -> None:
    stage = replace(STAGE, warmup_ratio=ratio)
    rates = [stage_lr(stage, step, num_steps) for step in range(num_steps)]
    assert rates.index(1.0) == warmup - 1


def test_a_stage_of_one_step_trains_at_its_rate() -> None:
    assert stage_lr(STAGE, 0, 1) == 1.0
    assert stage_lr(replace(STAGE, warmup_ratio=0.0), 0, 1) == 1.0


def test_the_rate_goes_on_from_where_it_is_when_a_stage_is_planned_anew() -> None:
    stage = replace(STAGE, lr=10.0, warmup_ratio=0.0, lr_schedule="linear")
    passes = [steps(1, 1, 1, 1), steps(*[1] * 12)]
    # Ten steps were planned; after four of them it became sixteen, after ten of those thirteen.
    longer = Schedule([("a", stage, passes)], {"a": ((0, 10), (4, 16))})
    rates = [longer.lr(step) for step in range(17)]
    # From 6, the rate of step 4 in the first plan, to 0 in twelve steps.
    assert rates == pytest.approx([10, 9, 8, 7, *(6 - n / 2 for n in range(13))])
    again = Schedule([("a", stage, [steps(*[1] * 13)])], {"a": ((0, 10), (4, 16), (10, 13))})
    # From 3, the rate of step 10 in the second plan, to 0 in three.
    assert [again.lr(step) for step in range(14)] == pytest.approx([*rates[:10], 3, 2, 1, 0])


def test_the_warm_up_may_be_stretched() -> None:
    stage = replace(STAGE, lr=4.0, warmup_ratio=0.4, lr_schedule="constant")
    # Four of ten steps; after two, the eight that were left become sixteen.
    schedule = Schedule([("a", stage, [steps(*[1] * 18)])], {"a": ((0, 10), (2, 18))})
    rates = [schedule.lr(step) for step in range(8)]
    assert rates == pytest.approx([1, 2, 3, 3.5, 4, 4, 4, 4])


def test_a_plan_of_the_same_length_leaves_every_rate_as_it_was() -> None:
    stage = replace(STAGE, lr=7e-4, warmup_ratio=0.1)
    plain, planned_anew = (
        Schedule([("a", stage, [steps(*[1] * 37)])], {"a": lengths})
        for lengths in ((), ((0, 37), (5, 37), (20, 37)))
    )
    assert [plain.lr(n) for n in range(38)] == [planned_anew.lr(n) for n in range(38)]
