"""The rule of a guard: when an ability counts as forgotten, and which share to replay next."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sft_lab.metrics.paired import Difference, paired_over_seeds

Standing = Literal["below", "above", "room"]


@dataclass(frozen=True)
class Assessment:
    """The comparison of an ability with its limit, on the items of both evaluations.

    Attributes:
        standing: ``below`` its limit, ``above`` it, or above it with ``room`` for less replay.
        best: The best earlier score, on these items.
        margin: The score now minus the limit, with its 95 % interval and the number of items.
    """

    standing: Standing
    best: float
    margin: Difference


def assess(
    best: Mapping[str, float],
    now: Mapping[str, float],
    min_retention: float,
    room: float,
    clusters: Mapping[str, str] | None = None,
) -> Assessment | None:
    """Compare an ability with its retention limit, item by item.

    An ability is ``below`` if its score is below the limit, significant or not. It has ``room`` if
    the interval of the score minus limit and room lies above 0. In between, the share stays. The
    difference is paired by item, so on a hard benchmark, where few items are right, the interval is
    as narrow as the changes are few.

    The share rises without waiting for significance. On 200 items a fall to 0.8 of the best is
    barely significant against a limit of 0.9: in simulation, a guard that waits ends below the
    limit in 27 to 72 % of runs, this one in 5 to 13 %. Noise costs it little: with 28 of 164 items
    right, nothing lost, and 15 % of them changing by chance, it ends on the highest share in 19 %
    of runs. Requiring the score's own interval to lie above the limit ends there in 99 %.

    Args:
        best: Marks by item at the best evaluation.
        now: Marks by item now; only items of both count.
        min_retention: The part of the best score to retain.
        room: See ``Guard``.
        clusters: The cluster of each item; by default each item is its own.

    Returns:
        The assessment; None if the evaluations share no item, or none of those was right at best.

    >>> assess({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, min_retention=0.9, room=0.05).standing
    'below'
    """
    items = [item for item in best if item in now]
    if not any(best[item] > 0 for item in items):
        return None

    def above(part: float) -> Difference:
        needed = [part * best[item] for item in items]
        groups = None if clusters is None else [clusters[item] for item in items]
        return paired_over_seeds([needed], [[now[item] for item in items]], True, groups)

    margin = above(min_retention)
    standing: Standing = "above"
    if margin.value < -1e-9:  # rounding must not decide at the limit
        standing = "below"
    elif above(min_retention + room).low >= -1e-9:
        standing = "room"
    return Assessment(standing, sum(best[item] for item in items) / len(items), margin)


@dataclass(frozen=True)
class Rung:
    """The place of a source's share on the ladder.

    Attributes:
        index: The place.
        floor: The lowest place allowed; lower shares have failed.
        below: Whether an ability of the source was below its limit at the previous evaluation.
    """

    index: int
    floor: int = 0
    below: bool = False


def next_rung(rung: Rung, standings: Collection[Standing], top: int) -> Rung:
    """Return the next place of a source's share.

    One place up if one of its abilities is below its limit, one place down if all have room. A
    share at which an ability fell below its limit has failed and is never used again, so that
    shares do not oscillate. One at which an ability was below its limit before has not failed.

    Args:
        rung: The current place.
        standings: Standings of the source's abilities that were measured.
        top: The ladder's last place.
    """
    if not standings:
        return rung
    if "below" in standings:
        up = min(rung.index + 1, top)
        return Rung(up, rung.floor if rung.below else up, below=True)
    has_room = all(found == "room" for found in standings)
    down = has_room and rung.index > rung.floor
    return replace(rung, index=rung.index - down, below=False)
