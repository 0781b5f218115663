"""Confidence intervals of shares."""

from math import sqrt
from statistics import NormalDist


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, which holds at few items and at 0 or all right.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22.

    Args:
        correct: Items answered rightly.
        total: Items in all.
        confidence: Share of such intervals that hold the true value.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: If the counts are not 0 <= correct <= total with a total above 0.

    >>> low, high = wilson(5, 10)
    >>> f"{low:.4f} {high:.4f}"
    '0.2366 0.7634'
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"An interval needs 0 <= correct <= total > 0, got {correct} of {total}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = share + z**2 / (2 * total)
    half = z * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    # Rounding alone could leave the interval of 0 or all right beside its own share.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high
