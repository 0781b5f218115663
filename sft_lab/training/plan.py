"""The plan of a stage: which rows go into which optimizer step, known before training starts."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sft_lab.training.packing import look_ahead_for, pack

T = TypeVar("T")

RowCounts = Mapping[str, Sequence[int] | NDArray[np.integer[Any]]]
"""A number for every row of a source, such as its tokens, by the source's name."""

Order = Literal["even", "random", "length"]

Counts = dict[str, dict[str, int]]
"""``samples``, ``tokens`` and ``target_tokens`` by source."""

Lengths = tuple[tuple[int, int], ...]
"""Every plan that a stage has had: the steps taken when it was made, and the steps it then had."""


@dataclass(frozen=True, order=True, slots=True)
class RowRef:
    """A row of a source, by the source's name and the row's index in it."""

    source: str
    index: int


Bin = list[RowRef]
"""The rows of one training sequence, end to end: one row, or with packing as many as fit."""

Window = list[Bin]
"""The training sequences of one optimizer step."""


def seeded(*parts: object) -> random.Random:
    """Return a generator that depends on its parts only, on every machine and Python version."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def shuffled(items: Sequence[T], chance: random.Random) -> list[T]:
    """Return the items by chance; ``Random.shuffle`` may change with Python's version."""
    keys = [chance.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]


def spread_evenly(
    rows: Mapping[str, Sequence[int]], seed: int, stage_name: str, pass_index: int
) -> list[RowRef]:
    """Order the rows of one pass so that every stretch of it holds the whole mixture.

    The j-th of a source's n rows stands at (j + jitter) / n of the pass. Without it a stage's few
    replayed rows can fall together, and what they keep alive becomes a matter of luck.

    Args:
        rows: Row indices by source.
        seed: Seeds the order of each source's rows and the jitter.
        stage_name: So that stages differ in their order.
        pass_index: So that the passes of a stage differ in their order.
    """
    placed: list[tuple[float, RowRef]] = []
    for source, indices in rows.items():
        chance = seeded(seed, stage_name, pass_index, source)
        placed += [
            ((j + chance.random()) / len(indices), RowRef(source, index))
            for j, index in enumerate(shuffled(indices, chance))
        ]
    return [ref for _, ref in sorted(placed)]


def random_order(
    rows: Mapping[str, Sequence[int]], seed: int, stage_name: str, pass_index: int
) -> list[RowRef]:
    """Order the rows of one pass by chance alone, as most trainers do; see ``spread_evenly``."""
    refs = [RowRef(source, index) for source, indices in sorted(rows.items()) for index in indices]
    return shuffled(refs, seeded(seed, stage_name, pass_index))


def length_order(
    rows: Mapping[str, Sequence[int]],
    seed: int,
    stage_name: str,
    pass_index: int,
    num_tokens: RowCounts,
    batch_size: int,
) -> list[RowRef]:
    """Order the rows of one pass in batches of like length, the batches by chance.

    It saves padding, and gathers the rows of a source in few batches.
    """
    order = random_order(rows, seed, stage_name, pass_index)
    order.sort(key=lambda ref: int(num_tokens[ref.source][ref.index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    # The last one may be short, and only the last step of a pass may be.
    *whole, last = batches
    return list(chain(*shuffled(whole, seeded(seed, stage_name, pass_index, "batches")), last))


def into_bins(
    refs: Sequence[RowRef], num_tokens: RowCounts, packed_length: int | None
) -> list[Bin]:
    """Return training sequences: a row each, or with a packed length as many rows as fit."""
    if packed_length is None:
        return [[ref] for ref in refs]
    lengths = [int(num_tokens[ref.source][ref.index]) for ref in refs]
    packed = pack(lengths, packed_length, look_ahead_for(lengths, packed_length))
    return [[refs[place] for place in places] for places in packed]


def count_rows(
    rows: Iterable[RowRef], num_tokens: RowCounts, num_target_tokens: RowCounts
) -> Counts:
    """Count rows by source, a row as often as it comes."""
    counts: Counts = {}
    for source, index in ((ref.source, ref.index) for ref in rows):
        count = counts.setdefault(source, {"samples": 0, "tokens": 0, "target_tokens": 0})
        count["samples"] += 1
        count["tokens"] += int(num_tokens[source][index])
        count["target_tokens"] += int(num_target_tokens[source][index])
    return counts


@dataclass(frozen=True)
class StagePlan:
    """What one stage will train on, to the row.

    Attributes:
        name: The stage's name.
        passes: For every pass over the mixture its windows, one per optimizer step. The last pass
            ends early where the stage is limited by steps or tokens.
        lengths: Empty as long as the stage goes by its first plan.
    """

    name: str
    passes: list[list[Window]]
    lengths: Lengths = ()

    @property
    def windows(self) -> list[Window]:
        """The windows of all passes, one per optimizer step."""
        return list(chain.from_iterable(self.passes))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return sum(len(windows) for windows in self.passes)

    def rows(self) -> Iterator[RowRef]:
        """Yield the rows of the stage in their order, each as often as it is trained on."""
        for window in self.windows:
            yield from chain.from_iterable(window)

    def count(self, num_tokens: RowCounts, num_target_tokens: RowCounts) -> Counts:
        """Return what the whole stage trains on."""
        return count_rows(self.rows(), num_tokens, num_target_tokens)

    def count_windows(self, num_tokens: RowCounts, num_target_tokens: RowCounts) -> list[Counts]:
        """Return what every optimizer step trains on, in order."""
        return [
            count_rows(chain.from_iterable(window), num_tokens, num_target_tokens)
            for window in self.windows
        ]


def plan_stage(
    name: str,
    rows: Mapping[str, Sequence[int]],
    num_tokens: RowCounts,
    *,
    batch_size: int,
    seed: int,
    order: Order = "even",
    packed_length: int | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
) -> StagePlan:
    """Lay out a stage; it ends at the first of its limits that is reached.

    Args:
        name: The stage's name; part of the seed of its order.
        rows: The rows of its mixture, indices by source.
        num_tokens: Tokens of every row, by source.
        batch_size: Training sequences per optimizer step.
        seed: Seed of the order.
        order: ``even`` spreads every source over the pass; ``random`` and ``length`` do not, and
            are there to be compared with.
        packed_length: Tokens of a training sequence into which rows are packed; by default every
            row is a sequence of its own.
        epochs: Passes over the mixture.
        max_steps: Optimizer steps.
        max_tokens: Tokens, prompts included; the stage ends with the step that reaches them.

    Raises:
        ValueError: If no limit is given or the mixture is empty; both are checked with the config.
    """
    if epochs is None and max_steps is None and max_tokens is None:
        raise ValueError(f"Stage '{name}' has no end: give epochs, max_steps or max_tokens.")
    if not any(rows.values()):
        raise ValueError(f"Stage '{name}' has no rows.")
    passes: list[list[Window]] = []
    steps = tokens = 0

    def is_full() -> bool:
        return (max_steps is not None and steps >= max_steps) or (
            max_tokens is not None and tokens >= max_tokens
        )

    while not is_full() and (epochs is None or len(passes) < epochs):
        picked = {source: indices for source, indices in rows.items() if indices}
        match order:
            case "even":
                refs = spread_evenly(picked, seed, name, len(passes))
            case "random":
                refs = random_order(picked, seed, name, len(passes))
            case "length":
                refs = length_order(picked, seed, name, len(passes), num_tokens, batch_size)
        bins = into_bins(refs, num_tokens, packed_length)
        windows: list[Window] = []
        for start in range(0, len(bins), batch_size):
            if is_full():
                break
            window = bins[start : start + batch_size]
            windows.append(window)
            steps += 1
            tokens += sum(int(num_tokens[ref.source][ref.index]) for ref in chain(*window))
        passes.append(windows)
    return StagePlan(name, passes)
