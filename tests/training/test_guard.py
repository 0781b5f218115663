import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.world import WorldMath
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.guard import Guard, check_guard
from sft_lab.training.guard_rule import Rung, Standing, assess, next_rung
from sft_lab.training.order import OrderName
from sft_lab.training.stage import Stage

TOP = 4
MATH = "world_math/format_free"


def of_items(right: range, count: int) -> dict[str, float]:
    return {f"i{n}": float(n in right) for n in range(count)}


def standing(best: range, now: range, count: int, min_retention: float = 0.9) -> str:
    found = assess(of_items(best, count), of_items(now, count), min_retention, room=0.05)
    assert found is not None
    return found.standing


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (60, "below"),
        (89, "below"),  # shown or not
        (90, "above"),  # at the limit
        (97, "above"),  # some room, which may be chance
        (100, "room"),
    ],
)
def test_an_ability_is_assessed_by_the_items_that_it_keeps(kept: int, expected: str) -> None:
    assert standing(range(100), range(kept), 200) == expected


def test_a_hard_benchmark_that_loses_nothing_is_not_below() -> None:
    # The score's own interval, [12, 24] in percent of 17, lies below nine tenths of it as well.
    assert standing(range(28), range(28), 164) == "room"
    assert standing(range(28), range(33), 164) == "room"
    assert standing(range(28), range(2, 30), 164) == "above"  # two lost, two gained
    assert standing(range(28), range(24), 164) == "below"


def test_more_items_show_room_that_few_do_not() -> None:
    assert standing(range(100), range(97), 110) == "above"
    assert standing(range(1000), range(970), 1100) == "room"


def test_only_items_of_both_evaluations_count() -> None:
    best, now = of_items(range(20), 20), of_items(range(10), 10)  # the second of half the items
    found = assess(best, now, min_retention=0.9, room=0.05)
    assert found is not None
    assert (found.standing, found.best, found.margin.n) == ("room", 1.0, 10)
    assert found.margin.value == pytest.approx(0.1)
    assert assess(best, {"other": 1.0}, 0.9, 0.05) is None
    assert assess(of_items(range(0), 9), now, 0.9, 0.05) is None  # nothing that could be kept


def places(rung: Rung, *evaluations: list[Standing]) -> list[int]:
    found = []
    for standings in evaluations:
        rung = next_rung(rung, standings, TOP)
        found.append(rung.index)
    return found


def test_a_share_goes_up_while_an_ability_is_below_and_stays_between() -> None:
    assert places(Rung(0), ["below"], ["below"], ["above"], ["above"]) == [1, 2, 2, 2]
    assert places(Rung(3), ["below"], ["below"], ["below"]) == [4, 4, 4]


def test_a_share_goes_down_where_all_abilities_have_room() -> None:
    assert places(Rung(3), ["room", "room"], ["room", "above"], ["room", "room"]) == [2, 2, 1]
    assert places(Rung(0), ["room"]) == [0]
    assert places(Rung(2), ["room", "below"]) == [3]


def test_nothing_measured_changes_nothing() -> None:
    rung = Rung(2, floor=1, below=True)
    assert next_rung(rung, [], TOP) == rung


def test_a_share_that_proved_too_little_is_not_gone_back_to() -> None:
    # It falls under 1; recovers under 2 and has room there, but 1 has failed.
    assert places(Rung(1), ["below"], ["room"], ["room"]) == [2, 2, 2]
    # Under 2 it was still on its way up: that says nothing of 2, so from 3 it may go back to it.
    assert places(Rung(1), ["below"], ["below"], ["room"], ["room"]) == [2, 3, 2, 2]
    # There it falls again, so 2 has failed as well.
    assert places(Rung(1), ["below"], ["below"], ["room"], ["below"], ["room"]) == [2, 3, 2, 3, 3]


def test_a_share_does_not_swing_for_ever() -> None:
    # Whatever is measured, a fall from above the limit happens once to a share, the highest aside.
    chance = random.Random(0)
    kinds: tuple[Standing, ...] = ("below", "above", "room")
    for _ in range(200):
        rung, failed = Rung(chance.randrange(TOP + 1)), []
        for standings in ([chance.choice(kinds)] for _ in range(60)):
            if standings == ["below"] and not rung.below and rung.index < TOP:
                failed.append(rung.index)
            moved = next_rung(rung, standings, TOP)
            assert abs(moved.index - rung.index) <= 1
            assert moved.index >= moved.floor
            rung = moved
        assert all(low < high for low, high in itertools.pairwise(failed))


Check = Callable[..., None]


@pytest.fixture
def check() -> Check:
    """Checks a guard of general with math replayed, with something changed."""

    def checked(
        guard: dict[str, Any] | None = None,
        stage: dict[str, Any] | None = None,
        order: OrderName = "even",
        source: str | None = "math",
        every_n_steps: int | None = 4,
        split: float | None = 0.5,
    ) -> None:
        benchmark = WorldMath("none.jsonl", max_new_tokens=4, source=source)
        suite = EvaluationSuite({"world_math": benchmark}, every_n_steps, split=split)
        mixture = {"general": 1, "math": "1/64"}
        stages = {"chat": replace(Stage(mixture, lr=1e-3, epochs=1), **(stage or {}))}
        settings = {"stage": "chat", "min_retention": {MATH: 0.9}, **(guard or {})}
        check_guard(Guard(**settings), stages, suite, order)

    return checked


def test_a_right_guard_passes(check: Check) -> None:
    check()
    check(stage={"mixture": {"general": 1, "math": 0}, "epochs": 3})
    # A share may be written in more than one way.
    check(stage={"mixture": {"general": 1, "math": "0.25"}})
    rows = [{"rows": count} for count in (0, 5, 20)]
    check(guard={"shares": rows}, stage={"mixture": {"general": 1, "math": {"rows": 5}}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"guard": {"stage": "chatt"}},
            r"data.guard.stage: no stage 'chatt' \(did you mean 'chat'\?\)",
        ),
        ({"guard": {"min_retention": {}}}, "data.guard.min_retention is empty"),
        (
            {"guard": {"min_retention": {"world_math/acuracy": 0.9}}},
            r"no benchmark has this score \(did you mean 'world_math/accuracy'\?\)",
        ),
        ({"guard": {"shares": ["1/64"]}}, "needs at least two shares, got 1/64"),
        ({"guard": {"shares": ["1/64", 0]}}, "must rise from each to the next, got 1/64, 0"),
        ({"guard": {"shares": [0, {"rows": 5}]}}, "must all be of one kind"),
        (
            {"stage": {"mixture": {"general": 1, "math": "1/32"}}},
            "data.stages.chat.mixture.math: the guard starts there.*got 1/32",
        ),
        (
            {"stage": {"mixture": {"general": 1}}},
            "its source 'math' is not in the mixture of stage 'chat', which has general; add math",
        ),
        ({"stage": {"mixture": {"math": "1/64"}}}, "every source that stage 'chat' trains is guar"),
        ({"source": None}, "set evaluation.benchmarks.world_math.init_args.source"),
        ({"split": None}, "data.guard chooses by scores, .*; set evaluation.split: 0.5"),
        ({"every_n_steps": None}, "set evaluation.every_n_steps"),
        ({"stage": {"epochs": None, "max_steps": 9}}, "must not move with the replay: give epochs"),
        ({"stage": {"max_steps": 9}}, "data.stages.chat.max_steps: .* got 9; leave it out"),
        ({"stage": {"total": {"rows": 9}}}, "data.stages.chat.total"),
        ({"stage": {"temperature": 2.0}}, "data.stages.chat.temperature"),
        ({"order": "length"}, "data.order must be even where data.guard is set, got length"),
    ],
)
def test_a_wrong_guard_is_refused(check: Check, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(**changed)


def test_a_score_that_is_no_mean_over_items_is_refused() -> None:
    class Corpuswide(WorldMath):
        def mark_of(self, score_name: str) -> str | None:
            return None

    suite = EvaluationSuite(
        {"stated": Corpuswide("none.jsonl", max_new_tokens=4, source="math")}, 4, split=0.5
    )
    stages = {"chat": Stage({"general": 1, "math": "1/64"}, lr=1e-3, epochs=1)}
    with pytest.raises(RequestError, match="is not a mean over items; such scores are: none"):
        check_guard(Guard("chat", {"stated/accuracy": 0.9}), stages, suite, "even")
