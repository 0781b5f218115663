import numpy as np
import pytest

from sft_lab.metrics.intervals import bootstrap, wilson


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


@pytest.mark.parametrize(
    ("confidence", "interval"),
    [
        # The mean of three draws from 0, 0, 3 is 3 with chance (1/3)^3 = 3.7 %, 0 with 8/27.
        (0.95, (0.0, 3.0)),  # 3.7 % reaches into the upper 2.5 %
        (0.90, (0.0, 2.0)),  # but not the upper 5 %: there 2 is, with 6/27
        (0.30, (1.0, 1.0)),  # 35 and 65 %: P(0) = 29.6 %, P(0 or 1) = 74.1 %
    ],
)
def test_bootstrap_of_three_values_by_hand(
    confidence: float, interval: tuple[float, float]
) -> None:
    assert bootstrap([0, 0, 3], confidence=confidence) == interval


def test_values_of_a_group_are_drawn_together() -> None:
    # Each group has the mean 4, and so has every draw; four single values are all 0 or all 8 with
    # chance 1/16 each, which is above 2.5 %.
    assert bootstrap([0, 8, 0, 8], ["a", "a", "b", "b"]) == (4.0, 4.0)
    assert bootstrap([0, 8, 0, 8]) == (0.0, 8.0)


def test_a_larger_group_weighs_more() -> None:
    # a twice, both, b twice: 0, (0 + 0 + 0 + 8) / 4 = 2, 8
    assert bootstrap([0, 0, 0, 8], ["a", "a", "a", "b"], confidence=0.4) == (2.0, 2.0)


def test_one_value_and_equal_values_have_no_width() -> None:
    assert bootstrap([7.5]) == (7.5, 7.5)
    assert bootstrap([4, 4, 4, 4]) == (4.0, 4.0)


def test_bootstrap_depends_on_nothing_but_its_arguments() -> None:
    values = [float(n % 10) for n in range(80)]
    np.random.seed(1)
    first = bootstrap(values)
    np.random.seed(2)
    assert bootstrap(values) == first
    assert bootstrap(values, seed=1) != first
    assert bootstrap(values, seed=1) == pytest.approx(first, abs=0.05)


def test_bootstrap_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(7).integers(1, 11, 80).astype(float)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap(values.tolist()) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_refuses_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="got none"):
        bootstrap([])
    with pytest.raises(ValueError, match="got 95"):
        bootstrap([1.0], confidence=95)
    with pytest.raises(ValueError, match="argument"):
        bootstrap([1.0, 2.0], groups=["a"])
