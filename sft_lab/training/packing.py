"""Packing: several rows end to end in one training sequence, to save padding."""

import heapq
import math
from collections.abc import Sequence

_MOST_LOOK_AHEAD = 64
_LONGEST = 1.5
"""Length of a sequence that rows of a micro-batch share, in lengths of its longest row.

Longer ones would save little more padding, and attention grows with the square. On the world and on
real rows it computes less than over padded rows at 1.5, but not at 2
(``tests/speed/packing_fill.py``).
"""


def look_ahead_for(num_tokens: Sequence[int], max_length: int) -> int:
    """Return how far packing may move rows: far enough to fill sequences, no further.

    Four sequences' worth of rows fill sequences of many short rows: half an optimizer step of 8.
    Sequences of one or two long rows need more to choose from, which a large pass can spare: where
    no row moves by an 80th of it, any 20th keeps at least half of what was planned there, and on
    real rows all but a few of them: see ``tests/speed/packing_fill.py``.

    Args:
        num_tokens: Tokens of each row of a pass.
        max_length: Tokens of a sequence.
    """
    rows_per_sequence = math.ceil(len(num_tokens) * max_length / sum(num_tokens))
    return max(4 * rows_per_sequence, min(_MOST_LOOK_AHEAD, len(num_tokens) // 80))


def pack(num_tokens: Sequence[int], max_length: int, look_ahead: int) -> list[list[int]]:
    """Pack rows into bins, close to their order.

    A bin takes the first row that has no bin yet, and those of the ``look_ahead`` rows from there
    on that fill it best; of several choices that fill it alike, the one of earlier rows. No row
    moves by ``look_ahead`` places or more: a later row is out of sight until then, and whatever is
    packed before the first row without a bin was in sight of it.

    >>> pack([6, 5, 3, 4, 2], max_length=10, look_ahead=5)
    [[0, 3], [1, 2, 4]]

    Args:
        num_tokens: Tokens of each row, in the order of the plan.
        max_length: Tokens that a bin holds.
        look_ahead: Rows in sight; with 1 every row has a bin of its own.

    Returns:
        Indices into ``num_tokens``, each exactly once, by bin; in order within a bin, and the bins
        in the order of their first rows.

    Raises:
        ValueError: If a row is longer than a bin, or nothing is in sight.
    """
    if look_ahead < 1:
        raise ValueError(f"look_ahead must be 1 or more, got {look_ahead}.")
    if num_tokens and max(num_tokens) > max_length:
        raise ValueError(f"A row of {max(num_tokens)} tokens fits in no bin of {max_length}.")
    bins: list[list[int]] = []
    is_packed = [False] * len(num_tokens)
    for first, length in enumerate(num_tokens):
        if is_packed[first]:
            continue
        in_sight = range(first + 1, min(first + look_ahead, len(num_tokens)))
        waiting = [index for index in in_sight if not is_packed[index]]
        chosen = best_subset([num_tokens[index] for index in waiting], max_length - length)
        bins.append([first, *(waiting[place] for place in chosen)])
        for index in bins[-1]:
            is_packed[index] = True
    return bins


def pack_evenly(num_tokens: Sequence[int], max_length: int) -> list[list[int]]:
    """Pack the rows of a micro-batch into sequences of similar length, with little padding.

    For every number of sequences, each row, longest first, joins the shortest sequence; the number
    with the fewest tokens, padding included, is taken. No sequence is much longer than the longest
    row.

    >>> pack_evenly([9, 6, 5, 4, 3, 2], max_length=12)
    [[0, 5], [1, 4], [2, 3]]

    Args:
        num_tokens: Tokens of each row.
        max_length: Tokens that a sequence holds.

    Returns:
        Indices into ``num_tokens``, each exactly once, by sequence.
    """
    limit = min(int(_LONGEST * max(num_tokens)), max_length)
    best = [[index] for index in range(len(num_tokens))]
    fewest = len(num_tokens) * max(num_tokens)
    for count in range(len(num_tokens) - 1, math.ceil(sum(num_tokens) / limit) - 1, -1):
        bins = _spread(num_tokens, count)
        longest = max(sum(num_tokens[index] for index in places) for places in bins)
        if longest <= limit and count * longest < fewest:
            best, fewest = bins, count * longest
    return best


def _spread(num_tokens: Sequence[int], count: int) -> list[list[int]]:
    """Give each row, longest first, to the shortest of ``count`` sequences."""
    sequences: list[tuple[int, int, list[int]]] = [(0, place, []) for place in range(count)]
    for index in sorted(range(len(num_tokens)), key=lambda index: -num_tokens[index]):
        length, place, rows = sequences[0]
        rows.append(index)
        heapq.heapreplace(sequences, (length + num_tokens[index], place, rows))
    return [rows for _, _, rows in sorted(sequences, key=lambda sequence: sequence[1])]


def best_subset(lengths: Sequence[int], room: int) -> list[int]:
    """Return the places of the lengths with the largest sum within ``room``, in order.

    >>> best_subset([7, 4, 3, 3], room=9)
    [0]
    >>> best_subset([7, 4, 3, 3], room=10)
    [0, 2]
    """
    # Bit s of sums[j] says that some of the first j lengths add up to s.
    fits = (1 << (room + 1)) - 1
    sums = [1]
    for length in lengths:
        sums.append(sums[-1] | (sums[-1] << length & fits))
    rest = sums[-1].bit_length() - 1
    chosen = []
    for place in reversed(range(len(lengths))):
        if not sums[place] >> rest & 1:
            chosen.append(place)
            rest -= lengths[place]
    return chosen[::-1]
