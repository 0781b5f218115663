import random

import pytest

from sft_lab.metrics.forgetting import Assessed, best_boundary, changes, forgetting, retention
from sft_lab.metrics.score import Score


def at(
    step: int, value: float, *, low: float = 0.0, boundary: bool = True, full: bool = True
) -> Assessed:
    """An evaluation of 100 items; the lower end of its interval is half the score if not given."""
    return Assessed(step, Score(value, low or value / 2, 1.0, 100), boundary, full)


# Math is trained in steps 0 to 10, and chat from there to 20.
HISTORY = [
    at(0, 0.1),
    at(5, 0.95, boundary=False),
    at(10, 0.8),
    at(15, 0.9, boundary=False),
    at(20, 0.6),
]


def test_forgetting_counts_from_the_best_boundary_and_not_from_evaluations_between() -> None:
    assert changes(HISTORY, trained_at=10) == pytest.approx(
        {
            "forgetting": 0.2,  # 0.8 at step 10, not 0.95 at step 5
            "retention": 0.75,
            "backward_transfer": -0.2,
            "change_from_base": 0.5,
        }
    )


def test_now_may_be_between_boundaries() -> None:
    assert changes(HISTORY[:4], trained_at=10) == pytest.approx(
        {
            "forgetting": 0.0,  # it has risen: never negative
            "retention": 1.125,
            "backward_transfer": 0.1,
            "change_from_base": 0.8,
        }
    )


def test_the_evaluation_before_training_may_be_the_best() -> None:
    history = [at(0, 0.5), at(10, 0.4), at(20, 0.3)]
    assert changes(history, trained_at=10) == pytest.approx(
        {
            "forgetting": 0.2,
            "retention": 0.6,
            "backward_transfer": -0.1,
            "change_from_base": -0.2,
        }
    )


def test_while_an_ability_is_being_learned_there_is_only_the_change() -> None:
    assert changes(HISTORY[:1], trained_at=10) == {}
    assert changes(HISTORY[:2], trained_at=10) == {"change_from_base": pytest.approx(0.85)}
    # At the end of its own stage there is nothing later that could have lost it.
    assert changes(HISTORY[:3], trained_at=10) == {"change_from_base": pytest.approx(0.7)}
    assert changes(HISTORY, trained_at=None) == {"change_from_base": pytest.approx(0.5)}


def test_an_ability_never_shown_to_be_above_chance_cannot_be_forgotten() -> None:
    history = [at(0, 0.30, low=0.20), at(10, 0.35, low=0.25), at(20, 0.10, low=0.05)]
    change = {"change_from_base": pytest.approx(-0.2)}
    assert changes(history, trained_at=10, chance=0.25) == change
    assert changes(history, trained_at=10, chance=0.24)["forgetting"] == pytest.approx(0.25)
    # The score now is no reference: what is above chance for the first time is not yet forgotten.
    risen = [*history[:2], at(20, 0.9, low=0.8)]
    assert changes(risen, trained_at=10, chance=0.25) == {"change_from_base": pytest.approx(0.6)}


def test_a_part_of_the_items_is_neither_now_nor_a_reference() -> None:
    assert changes([*HISTORY, at(25, 0.2, boundary=False, full=False)], trained_at=10) == {}
    cut = [at(0, 0.1), at(10, 0.8, full=False), at(20, 0.6), at(30, 0.3)]
    assert changes(cut[:3], trained_at=10) == {"change_from_base": pytest.approx(0.5)}
    assert changes(cut, trained_at=10) == pytest.approx(
        {"forgetting": 0.3, "retention": 0.5, "change_from_base": 0.2}
    )


def test_of_equal_boundaries_the_first_is_the_best() -> None:
    history = [at(0, 0.1), at(10, 0.8), at(20, 0.8)]
    found = best_boundary(history, step=30)
    assert found is not None
    assert found.step == 10
    assert best_boundary(history, step=0) is None


def test_retention_means_nothing_without_a_success() -> None:
    assert retention(best=0.0, now=0.5) is None
    assert retention(best=0.8, now=0.6) == pytest.approx(0.75)


def test_forgetting_is_never_less_than_the_loss_since_its_stage() -> None:
    dice = random.Random(0)
    for _ in range(200):
        history = [at(n, 0.1 + dice.random()) for n in range(dice.randint(2, 6))]
        values = changes(history, trained_at=dice.randrange(len(history) - 1))
        assert values["forgetting"] >= -values["backward_transfer"]
        assert values["forgetting"] >= -values["change_from_base"]
        assert values["forgetting"] >= 0


def test_forgetting_is_never_negative() -> None:
    assert forgetting(best=0.4, now=0.6) == 0


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="score at step 1 is not a finite number, got nan"):
        changes([at(0, 0.1), Assessed(1, Score(float("nan"), 0, 1, 4), True)], trained_at=None)
