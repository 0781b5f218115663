"""Forgetting, retention, backward transfer and change from base of one ability, from its scores.

Each is defined once, here, and used by runs and by every command that shows it. A value that is
undefined is absent, never 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from sft_lab.metrics.score import Score


@dataclass(frozen=True)
class Assessed:
    """An ability's score at one evaluation of a run.

    Attributes:
        step: Optimizer steps taken.
        score: The score with its 95 % interval.
        is_boundary: Whether it was measured before training or where a stage ended.
        is_full: Whether it was measured on all items.
    """

    step: int
    score: Score
    is_boundary: bool
    is_full: bool = True


def best_boundary(history: Iterable[Assessed], step: int) -> Assessed | None:
    """Return the best full evaluation at a stage boundary before a step; of equal ones the first.

    It is the reference of forgetting and retention, and may be the evaluation before training.

    >>> scores = {0: 0.25, 5: 0.75, 9: 0.5}
    >>> history = [Assessed(step, Score(s, 0, 1, 4), True) for step, s in scores.items()]
    >>> best_boundary(history, step=9).step
    5
    """
    return max(_boundaries(history, step), key=lambda found: found.score.value, default=None)


def forgetting(best: float, now: float) -> float:
    """Return the best earlier score minus the score now, at least 0.

    Source: Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning", section 3.2, where
    the best is over the ends of earlier tasks.

    >>> forgetting(best=0.75, now=0.5), forgetting(best=0.75, now=1.0)
    (0.25, 0.0)
    """
    return max(0.0, best - now)


def retention(best: float, now: float) -> float | None:
    """Return the score now over the best earlier score; None if that is not above 0.

    >>> retention(best=0.75, now=0.375)
    0.5
    """
    return now / best if best > 0 else None


def backward_transfer(trained: float, now: float) -> float:
    """Return the score now minus the score after the stage that first trained the ability.

    Source: Lopez-Paz & Ranzato (2017), "Gradient Episodic Memory for Continual Learning", sec. 2.

    >>> backward_transfer(trained=0.75, now=0.5)
    -0.25
    """
    return now - trained


def change_from_base(base: float, now: float) -> float:
    """Return the score now minus the score before training.

    >>> change_from_base(base=0.25, now=0.5)
    0.25
    """
    return now - base


def changes(
    history: Sequence[Assessed], trained_at: int | None, chance: float = 0.0
) -> dict[str, float]:
    """Return the changes of an ability at its last evaluation.

    Forgetting, retention and backward transfer are defined once the first stage that trains the
    ability has ended in a full evaluation, from the evaluation after that one, and only if there
    was something to forget: at an earlier boundary, the lower end of the score's interval was above
    chance. Until then the ability is being learned and has its change from base alone. An
    evaluation on a subset of the items has no changes, since its score is not comparable.

    Args:
        history: The ability's evaluations in order of steps.
        trained_at: Optimizer steps at the end of the first stage that trains the ability; None if
            no stage does.
        chance: The score of guessing.

    Returns:
        ``forgetting``, ``retention``, ``backward_transfer`` and ``change_from_base``, as far as
        they are defined.

    Raises:
        ValueError: If a score is not a finite number.

    >>> scores = [0.0, 0.75, 0.5]
    >>> history = [Assessed(n, Score(s, s / 2, 1, 4), True) for n, s in enumerate(scores)]
    >>> changes(history, trained_at=1)["forgetting"]
    0.25
    """
    for found in history:
        if not isfinite(found.score.value):
            raise ValueError(
                f"the score at step {found.step} is not a finite number, got {found.score.value}."
            )
    if not history or not history[-1].is_full:
        return {}
    step, now = history[-1].step, history[-1].score.value
    earlier = _boundaries(history, step)
    values: dict[str, float | None] = {}
    if earlier and earlier[0].step == 0:
        values["change_from_base"] = change_from_base(earlier[0].score.value, now)
    best = best_boundary(history, step)
    if (
        best is not None
        and trained_at is not None
        and any(found.step >= trained_at for found in earlier)
        and any(found.score.low > chance for found in earlier)
    ):
        values["forgetting"] = forgetting(best.score.value, now)
        values["retention"] = retention(best.score.value, now)
        for found in earlier:
            if found.step == trained_at:
                values["backward_transfer"] = backward_transfer(found.score.value, now)
    return {name: value for name, value in values.items() if value is not None}


def _boundaries(history: Iterable[Assessed], before: int) -> list[Assessed]:
    """Return the full evaluations at boundaries before a step."""
    return [f for f in history if f.is_boundary and f.is_full and f.step < before]
