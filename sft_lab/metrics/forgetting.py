"""What training did to abilities: forgetting, retention and backward transfer, from their scores.

All functions take scores in order of time. Where a value has no meaning yet, it is absent, never 0.
"""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite


def forgetting(earlier: Sequence[float], now: float) -> float | None:
    """Return the best earlier score minus the score now; negative when it has risen.

    Source: Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning", section 3.2.

    >>> forgetting([0.25, 0.75], now=0.5)
    0.25
    """
    return max(earlier) - now if earlier else None


def retention(earlier: Sequence[float], now: float) -> float | None:
    """Return the score now over the best earlier score; None while there is none above 0.

    >>> retention([0.25, 0.75], now=0.375)
    0.5
    """
    return now / max(earlier) if earlier and max(earlier) > 0 else None


def derived(
    history: Sequence[Mapping[str, float]],
    trained_at: Mapping[str, int],
    not_averaged: Collection[str] = (),
) -> dict[str, float]:
    """Return what the last evaluation says beside its scores.

    Backward transfer is the score now minus the score after the stage that first trained the
    ability, from the first evaluation after that one.

    Source: Lopez-Paz & Ranzato (2017), "Gradient Episodic Memory for Continual Learning", sec. 2.

    Args:
        history: Scores by key, one entry per evaluation, the first one before training.
        trained_at: By key, the index in ``history`` of the evaluation at the end of the stage that
            first trained the ability; no entry before that stage has ended.
        not_averaged: Keys on another scale than [0, 1], which the average leaves out.

    Returns:
        ``forgetting/<key>``, ``retention/<key>``, ``backward_transfer/<key>`` of every key of the
        last entry, and ``average/score``, the mean over all abilities: absent where one of them has
        no score now, since a mean over fewer abilities does not compare.

    Raises:
        ValueError: If a score is not a finite number.

    >>> scores = [{"math": 0.0}, {"math": 0.5}, {"math": 0.25}]
    >>> for key, value in derived(scores, trained_at={"math": 1}).items():
    ...     print(key, value)
    forgetting/math 0.25
    retention/math 0.5
    backward_transfer/math -0.25
    average/score 0.25
    """
    for index, entry in enumerate(history):
        for key, score in entry.items():
            if not isfinite(score):
                raise ValueError(f"Score '{key}' of evaluation {index} is not finite, got {score}.")
    if not history:
        return {}
    *past, last = history
    values: dict[str, float | None] = {}
    for key, now in last.items():
        earlier = [entry[key] for entry in past if key in entry]
        values[f"forgetting/{key}"] = forgetting(earlier, now)
        values[f"retention/{key}"] = retention(earlier, now)
        at = trained_at.get(key)
        if at is not None and 0 <= at < len(past) and key in past[at]:
            values[f"backward_transfer/{key}"] = now - past[at][key]
    abilities = {key for entry in history for key in entry} - set(not_averaged)
    if abilities and abilities <= last.keys():
        values["average/score"] = sum(last[key] for key in abilities) / len(abilities)
    return {key: value for key, value in values.items() if value is not None}
