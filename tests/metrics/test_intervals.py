import pytest

from sft_lab.metrics.intervals import wilson


def test_half_right_by_hand() -> None:
    # z = 1.96: centre (0.5 + 0.19207) / 1.38415 = 0.5; half 1.96 * sqrt(0.025 + 0.0096) / 1.38415
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)


@pytest.mark.parametrize(
    ("correct", "total", "interval"),
    [
        (28, 164, (0.12080, 0.23568)),  # HumanEval at 17 %, half a width of 5.7 points
        (1, 10, (0.01788, 0.40415)),  # 0.21103 +- 0.19314
    ],
)
def test_unequal_shares(correct: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson(correct, total) == pytest.approx(interval, abs=1e-4)


def test_none_and_all_right_keep_a_width_and_mirror_each_other() -> None:
    # z^2 / (n + z^2) = 3.84146 / 13.84146
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


def test_more_confidence_is_wider() -> None:
    # z = 2.57583, z^2 = 6.63490: 0.5 +- 2.57583 * sqrt(0.025 + 0.0165872) / 1.663490
    assert wilson(5, 10, confidence=0.99) == pytest.approx((0.18423, 0.81577), abs=1e-4)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {correct} of {total}"):
        wilson(correct, total)


def test_confidence_is_a_share() -> None:
    with pytest.raises(ValueError, match="got 95"):
        wilson(1, 2, confidence=95)
