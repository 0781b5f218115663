"""Tests of a difference against a margin, and the smallest difference that a test could show.

A missing significance does not show that there is no effect: that needs a test of its own, against
a stated margin. Both tests here read the standard error off the 95 % interval of the difference,
on the side of the margin, so that clusters of items and seeds count in them as they do there.

Source: Schuirmann (1987), "A Comparison of the Two One-Sided Tests Procedure and the Power Approach
for Assessing the Equivalence of Average Bioavailability", Journal of Pharmacokinetics and
Biopharmaceutics 15.
"""

from math import inf, isfinite

from scipy import stats

from sft_lab.metrics.paired import Difference

MARGIN = 0.05
"""The least difference that matters, as a part of the scale: 5 points of 100, or 0.45 of 1 to 10.

It is a convention, a key of studies and reports: no test can show that nothing changed at all.
"""


def equivalence_p(found: Difference, margin: float) -> float:
    """Return the p of two one-sided tests: below 5 %, the difference lies within the margin.

    Args:
        found: The difference.
        margin: The least difference that matters, in the unit of the score; above 0.
    """
    return max(no_loss_p(found, margin), _one_sided_p(margin - found.value, found.high, found))


def no_loss_p(found: Difference, margin: float) -> float:
    """Return the p of one one-sided test: below 5 %, the loss is smaller than the margin."""
    return _one_sided_p(found.value + margin, found.low, found)


def smallest_difference(found: Difference, level: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that such a test shows with the given power.

    It is (t at 1 - level / 2 plus t at power) times the standard error: the usual approximation,
    with the degrees of freedom and the standard error of the test that was made.

    Source: Bloom (1995), "Minimum Detectable Effects", Evaluation Review 19.

    Args:
        found: The difference, whose interval gives the standard error.
        level: Two-sided level that the test has to reach.
        power: Chance that it is reached.

    Returns:
        In the unit of the score; inf if there are too few items for an interval.
    """
    half = max(found.value - found.low, found.high - found.value)  # one end may be cut off at 1
    if not isfinite(half):
        return inf
    error = half / _quantile(0.975, found.df)
    return (_quantile(1 - level / 2, found.df) + _quantile(power, found.df)) * error


def _one_sided_p(distance: float, end: float, found: Difference) -> float:
    """Return the p of a difference this far inside a margin, by the interval's end on its side."""
    half = abs(end - found.value)
    if not isfinite(half):
        return 1.0
    if half == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance * _quantile(0.975, found.df) / half, found.df))


def _quantile(probability: float, df: float) -> float:
    return float(stats.t.ppf(probability, df))
