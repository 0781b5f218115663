from math import inf, sqrt

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sft_lab.metrics.paired import Difference, holm, paired_means, paired_over_seeds, paired_shares


def shares(both: int, lost: int, gained: int, neither: int) -> Difference:
    """The difference of items given by what happened to them."""
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return paired_shares(before, after)


def test_mcnemar_by_hand() -> None:
    change = shares(both=5, lost=8, gained=1, neither=6)
    assert change.p == pytest.approx(2 * (1 + 9) / 2**9)  # C(9, 0) + C(9, 1) of 2^9, two-sided
    assert (change.value, change.n, change.lost, change.gained) == (-7 / 20, 20, 8, 1)
    assert change.test == "exact McNemar"


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (3, 3), (2, 11), (40, 25)])
def test_mcnemar_is_the_sign_test_of_changed_items(lost: int, gained: int) -> None:
    theirs = stats.binomtest(lost, lost + gained).pvalue
    assert shares(7, lost, gained, 9).p == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("table", "interval"),
    [
        # Bentur et al. (2009), as in Fagerland, Lydersen and Laake (2014), table 6: -0.286.
        ((1, 7, 1, 12), (-0.507, -0.026)),
        # By hand: Wilson's 0.2366 to 0.7634 on both sides and phi 0, sqrt(2) * 0.2634 each way.
        ((3, 2, 2, 3), (-0.3725, 0.3725)),
    ],
)
def test_newcombes_interval(
    table: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    change = shares(*table)
    assert (change.low, change.high) == pytest.approx(interval, abs=1e-3)


def test_all_forgotten_ends_at_minus_one() -> None:
    change = shares(0, 10, 0, 0)
    # Both shares are sure to 0.2775 (Wilson, 0 of 10) on the inner side: sqrt(2) * 0.27753 apart.
    assert (change.low, change.high) == (-1, pytest.approx(-1 + sqrt(2) * 0.27753, abs=1e-4))


def test_swapped_sides_mirror_the_difference() -> None:
    one, other = shares(5, 8, 1, 6), shares(5, 1, 8, 6)
    assert (one.low, one.high, one.p) == pytest.approx((-other.high, -other.low, other.p))
    before, after = [1.0, 5.0, 3.0, 8.0, 2.0], [2.0, 7.0, 3.0, 9.0, 6.0]
    there, back = paired_means(before, after), paired_means(after, before)
    assert (there.low, there.high, there.p) == pytest.approx((-back.high, -back.low, back.p))


def test_equal_runs_differ_by_nothing() -> None:
    marks = [True, False, True, True]
    change = paired_shares(marks, marks)
    assert (change.value, change.p, change.gained, change.lost) == (0, 1, 0, 0)
    assert change.low < 0 < change.high
    assert paired_means([3, 7, 8, 1], [3, 7, 8, 1]) == Difference(
        0, 0, 0, 1, 4, 0, 0, "paired bootstrap", 3
    )
    assert paired_over_seeds([marks, marks], [marks, marks]) == change


def test_the_bootstraps_interval_is_scipys_at_the_widened_level() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.integers(1, 11, (2, 40)).astype(float)
    change = paired_means(before.tolist(), after.tolist())
    # Hesterberg (2015): Phi(-sqrt(n / (n - 1)) t) in place of 2.5 %.
    tail = stats.norm.cdf(-sqrt(40 / 39) * stats.t.ppf(0.975, 39))
    theirs = stats.bootstrap(
        (after - before,),
        np.mean,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (change.low, change.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert change.p == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)


def test_p_is_below_5_percent_where_the_interval_leaves_0_out() -> None:
    rng = np.random.default_rng(2)
    disagree = 0
    for _ in range(60):
        changes = rng.normal(0.5, 1, 12)
        change = paired_means([0.0] * 12, changes.tolist())
        disagree += (change.p < 0.05) != (change.low > 0 or change.high < 0)
    assert disagree == 0


def test_three_items_have_no_interval() -> None:
    change = paired_means([1, 1, 1], [2, 2, 2])
    assert (change.value, change.low, change.high) == (1, -inf, inf)
    assert change.p > 0.05
    assert paired_means([1], [2]) == Difference(1, -inf, inf, 1, 1, 0, 0, "paired bootstrap", 0)


def test_items_of_a_group_are_drawn_together() -> None:
    changes = [1.0, 1.0, -1.0, -1.0] * 5
    groups = [f"g{n // 2}" for n in range(20)]
    alone, together = paired_means([0.0] * 20, changes), paired_means([0.0] * 20, changes, groups)
    assert together.n == 20
    # Ten groups of two equal items scatter like ten items: wider by sqrt(2) and a t quantile.
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(sqrt(19 / 9) * 2.262 / 2.093, rel=0.06)
    each = [(0.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    before, after = zip(*each, strict=True)
    with pytest.raises(ValueError, match="argument"):
        paired_means(before, after, groups=["a"])


def test_seeds_and_items_by_hand() -> None:
    # Means over seeds: before 2.5 everywhere, after 3, 2.5, 3, 2.5; changes 0.5, 0, 0.5, 0.
    before = [[3, 2, 3, 2], [2, 3, 2, 3]]
    after = [[3, 2, 3, 3], [3, 3, 3, 2]]
    change = paired_over_seeds(before, after)
    assert (change.value, change.n, change.test) == (0.25, 4, "t over seeds and items")
    # Items: var(changes) / 4 = (1/12) / 4. Seed means 2.5, 2.5 and 2.75, 2.75: no variance.
    # Rest: residuals +-0.5 in 8 cells before, (0, +-0.5, 0, +-0.5) after; 3 df, 8 marks:
    # 2 / 3 / 8 + 1 / 3 / 8 = 1/8, which is more than the items' 1/48: the items' part stands.
    squares = (1 / 48) ** 2 / 3 + (1 / 12) ** 2 / 3 + (1 / 24) ** 2 / 3
    half = float(stats.t.ppf(0.975, (1 / 48) ** 2 / squares)) / sqrt(48)
    assert (change.low, change.high) == pytest.approx((0.25 - half, 0.25 + half))


def test_shares_do_not_differ_by_more_than_all() -> None:
    change = paired_over_seeds([[0] * 8] * 2, [[1] * 8, [1] * 6 + [0] * 2])
    assert (change.value, change.high) == (0.875, 1)
    ratings = paired_over_seeds([[2] * 8] * 2, [[3] * 8, [3] * 6 + [2] * 2])
    assert ratings.high == pytest.approx(0.875 + (0.875 - ratings.low))


def test_seeds_that_scatter_widen_the_interval() -> None:
    items = [True] * 30 + [False] * 30
    calm = [[*items[n:], *items[:n]] for n in (0, 1, 2)]
    wild = [[True] * (10 + 20 * n) + [False] * (50 - 20 * n) for n in (0, 1, 2)]
    better = [[True] * 50 + [False] * 10] * 3
    assert paired_over_seeds(calm, better).p < 0.05
    change = paired_over_seeds(wild, better)
    # 2 df at most; standard error of wild's mean over seeds (10, 30, 50 of 60): 1/3 / sqrt(3).
    assert change.p > 0.2
    assert change.high - change.low > 2 * 0.19


def test_one_seed_is_one_run() -> None:
    assert paired_over_seeds([[1, 1, 0]], [[0, 1, 0]]) == paired_shares([1, 1, 0], [0, 1, 0])
    assert paired_over_seeds([[1, 9.0, 4]], [[2, 8.5, 9]]) == paired_means([1, 9, 4], [2, 8.5, 9])


@pytest.mark.parametrize(("num_seeds", "num_items"), [(2, 40), (3, 150), (5, 40)])
@pytest.mark.parametrize("seed_effect", [0.0, 0.3, 1.0])
def test_a_null_is_rejected_in_5_percent_at_most(
    num_seeds: int, num_items: int, seed_effect: float
) -> None:
    rng = np.random.default_rng(num_seeds * 1000 + num_items)
    rejected = covered = 0
    for _ in range(200):
        item = rng.normal(0, 1.5, num_items)
        before, after = (
            rng.random((num_seeds, num_items))
            < 1 / (1 + np.exp(-item - rng.normal(0, seed_effect, (num_seeds, 1))))
            for _ in range(2)
        )
        change = paired_over_seeds(before, after)
        rejected += change.p < 0.05
        covered += change.low <= 0 <= change.high
    assert rejected <= 20  # of 5 % of 200, binomial: 21 or more in 0.1 % of cases
    assert rejected + covered == 200


def test_single_runs_keep_the_level_and_find_what_is_there() -> None:
    rng = np.random.default_rng(5)
    rates = {"null": [0, 0], "effect": [0, 0]}
    for _ in range(100):
        before = rng.random(120) < 0.5
        chance = rng.random(120) < 0.2  # flips one item in five, either way
        effect = before & (rng.random(120) < 0.3)  # forgets 15 % of all items
        ratings = rng.normal(5, 2, 25)
        for name, after, shift in (("null", before ^ chance, 0), ("effect", before ^ effect, 1.5)):
            rates[name][0] += paired_shares(before, after).p < 0.05
            new = ratings + rng.normal(shift, 2, 25)
            rates[name][1] += paired_means(ratings.tolist(), new.tolist()).p < 0.05
    assert max(rates["null"]) <= 12
    assert min(rates["effect"]) >= 90


def test_holm_by_hand() -> None:
    # Least first: 3 * 0.01, 2 * 0.02 and 0.05, none less than the one before it.
    assert holm({"a": 0.05, "b": 0.01, "c": 0.02}) == pytest.approx(
        {"a": 0.05, "b": 0.03, "c": 0.04}
    )
    assert holm({"a": 0.04, "b": 0.03}) == pytest.approx({"a": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1}
    assert holm({}) == {}


def test_holm_is_that_of_statsmodels() -> None:
    p_values = dict(enumerate(np.random.default_rng(1).beta(0.3, 2, size=40).round(2).tolist()))
    expected = multipletests(list(p_values.values()), method="holm")[1]
    assert list(holm(p_values).values()) == pytest.approx(expected.tolist())


def test_what_cannot_be_paired_is_refused() -> None:
    for test in (paired_shares, paired_means):
        with pytest.raises(ValueError, match="got 2 before and 1 after"):
            test([True, True], [True])
        with pytest.raises(ValueError, match="got none"):
            test([], [])
    with pytest.raises(ValueError, match="finite"):
        paired_means([1.0], [float("nan")])
    with pytest.raises(ValueError, match="got 2 before and 1"):
        paired_over_seeds([[1, 0]], [[1]])
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_over_seeds([[1, 0]], [[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="got 0 seeds"):
        paired_over_seeds([], [])
