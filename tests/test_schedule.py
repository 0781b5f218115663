import math
from dataclasses import replace

import pytest

from sft_lab.data.stage import Stage
from sft_lab.schedule import Schedule, StepSize, stage_lr

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
    with pytest.raises(IndexError, match="pass 3 lies behind the last one, 2"):
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
    # Linear from 3 to 0 over four steps; behind the last step, where nothing is trained, 0.
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
