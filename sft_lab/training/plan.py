"""The plan of a stage: which rows go into which optimizer step, known before training starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from sft_lab.training.order import (
    DataOrder,
    MixturePass,
    OrderName,
    RowCounts,
    RowRef,
    find_order,
    ordered,
)
from sft_lab.training.packing import look_ahead_for, pack

Counts = dict[str, dict[str, int]]
"""``samples``, ``tokens`` and ``target_tokens`` by source."""

PlanLengths = tuple[tuple[int, int], ...]
"""Every plan that a stage has had: the steps taken when it was made, and the steps it then had."""

Bin = list[RowRef]
"""The rows of one training sequence, end to end: one row, or with packing as many as fit."""

Window = list[Bin]
"""The training sequences of one optimizer step."""


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
    """Count rows by source, repeats included."""
    counts: Counts = {}
    for source, index in ((ref.source, ref.index) for ref in rows):
        count = counts.setdefault(source, {"samples": 0, "tokens": 0, "target_tokens": 0})
        count["samples"] += 1
        count["tokens"] += int(num_tokens[source][index])
        count["target_tokens"] += int(num_target_tokens[source][index])
    return counts


@dataclass(frozen=True)
class StagePlan:
    """Every row that one stage trains on, by optimizer step.

    Attributes:
        name: The stage's name.
        passes: For every pass over the mixture its windows, one per optimizer step. The last pass
            ends early where the stage is limited by steps or tokens.
        lengths: Empty while the stage follows its first plan.
    """

    name: str
    passes: list[list[Window]]
    lengths: PlanLengths = ()

    @property
    def windows(self) -> list[Window]:
        """The windows of all passes, one per optimizer step."""
        return list(chain.from_iterable(self.passes))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return sum(len(windows) for windows in self.passes)

    def rows(self) -> Iterator[RowRef]:
        """Yield the rows of the stage in order, repeats included."""
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
    order: OrderName | DataOrder = "even",
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
        order: The order of the rows of a pass.
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
        one_pass = MixturePass(picked, seed, name, len(passes), num_tokens, batch_size)
        refs = ordered(find_order(order), one_pass)
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
