import random

import pytest

from sft_lab.metrics.forgetting import derived, forgetting, retention

HISTORY = [
    {"math": 0.0, "chat": 0.2},
    {"math": 0.8, "chat": 0.1},  # the stage of math ends here
    {"math": 0.9, "chat": 0.3},
    {"math": 0.6, "chat": 0.6},
]


def test_forgetting_counts_from_the_best_earlier_score() -> None:
    assert forgetting([0.0, 0.9, 0.7], now=0.6) == pytest.approx(0.3)
    assert forgetting([0.2, 0.4], now=0.6) == pytest.approx(-0.2)  # it has risen


def test_retention_is_a_share_of_the_best_earlier_score() -> None:
    assert retention([0.2, 0.8], now=0.6) == pytest.approx(0.75)


@pytest.mark.parametrize("earlier", [[], [0.0, 0.0]])
def test_retention_means_nothing_before_a_first_success(earlier: list[float]) -> None:
    assert retention(earlier, now=0.5) is None


def test_last_evaluation_of_a_run() -> None:
    assert derived(HISTORY, trained_at={"math": 1}) == pytest.approx(
        {
            "forgetting/math": 0.3,  # 0.9 - 0.6
            "retention/math": 2 / 3,
            "backward_transfer/math": -0.2,  # 0.6 - 0.8
            "forgetting/chat": -0.3,
            "retention/chat": 2.0,
            "average/score": 0.6,
        }
    )


def test_first_evaluation_has_an_average_only() -> None:
    assert derived(HISTORY[:1], trained_at={}) == {"average/score": pytest.approx(0.1)}
    assert derived([], trained_at={}) == {}


def test_backward_transfer_starts_one_evaluation_after_the_stage() -> None:
    assert "backward_transfer/math" not in derived(HISTORY[:2], trained_at={"math": 1})
    after = derived(HISTORY[:3], trained_at={"math": 1})
    assert after["backward_transfer/math"] == pytest.approx(0.1)


def test_score_missing_from_some_evaluations() -> None:
    history = [{"math": 0.4, "code": 0.2}, {"math": 0.5}, {"code": 0.1}]
    assert derived(history, trained_at={"code": 1}) == {
        "forgetting/code": pytest.approx(0.1),
        "retention/code": pytest.approx(0.5),
    }  # no average: math has no score now; no backward transfer: code had none at its stage's end


def test_other_scales_stay_out_of_the_average() -> None:
    values = derived([{"math": 0.5, "mt_bench": 6.0}], trained_at={}, not_averaged=["mt_bench"])
    assert values == {"average/score": 0.5}


def test_forgetting_is_never_less_than_the_loss_since_its_stage() -> None:
    dice = random.Random(0)
    for _ in range(200):
        history = [{"math": dice.random()} for _ in range(dice.randint(2, 6))]
        values = derived(history, trained_at={"math": dice.randrange(len(history) - 1)})
        assert values["forgetting/math"] >= -values["backward_transfer/math"]


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="'math' of evaluation 1 is not finite, got nan"):
        derived([{"math": 0.1}, {"math": float("nan")}], trained_at={})
