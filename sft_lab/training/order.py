"""Data orders: the order in which the rows of one pass over a mixture are trained on."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sft_lab.errors import RequestError

T = TypeVar("T")

RowCounts = Mapping[str, Sequence[int] | NDArray[np.integer[Any]]]
"""A number for every row of a source, such as its tokens, by the source's name."""

OrderName = Literal["even", "random", "length"]


@dataclass(frozen=True, order=True, slots=True)
class RowRef:
    """A row of a source, by the source's name and the row's index in it."""

    source: str
    index: int


@dataclass(frozen=True)
class MixturePass:
    """One pass over a stage's mixture, to be put in order.

    Attributes:
        rows: Row indices by source, in hash rank order; at least one of each source.
        seed: ``data.seed``.
        stage_name: The stage.
        pass_index: Passes of the stage before it.
        num_tokens: Tokens of every row of a source, by source.
        batch_size: Training sequences per optimizer step; without packing, rows.
    """

    rows: Mapping[str, Sequence[int]]
    seed: int
    stage_name: str
    pass_index: int
    num_tokens: RowCounts
    batch_size: int

    def rng(self, *parts: object) -> random.Random:
        """Return a generator for this pass; ``parts`` distinguish several of them."""
        return seeded(self.seed, self.stage_name, self.pass_index, *parts)


class DataOrder:
    """An order of the rows of a pass, by default ``even``.

    Set ``data.order: {class_path: my_orders.MyOrder, init_args: {...}}``. The order must depend on
    the pass alone: a resumed run computes it again. Packing moves rows by a few places afterwards.
    """

    def refs(self, one_pass: MixturePass) -> list[RowRef]:
        """Return every row of the pass exactly as often as it is in ``one_pass.rows``."""
        raise NotImplementedError


class EvenOrder(DataOrder):
    """Spread every source evenly, so that every stretch of a pass holds the whole mixture.

    The j-th of a source's n rows is at (j + jitter) / n of the pass. Without it, a stage's few
    replayed rows can fall together, and what they preserve becomes a matter of luck.
    """

    def refs(self, one_pass: MixturePass) -> list[RowRef]:
        """Return the rows, each source shuffled and then spread evenly."""
        placed: list[tuple[float, RowRef]] = []
        for source, indices in one_pass.rows.items():
            rng = one_pass.rng(source)
            placed += spread(source, shuffled(indices, rng), rng)
        return [ref for _, ref in sorted(placed)]


class RandomOrder(DataOrder):
    """Shuffle all rows together, as most trainers do; for comparison with ``EvenOrder``."""

    def refs(self, one_pass: MixturePass) -> list[RowRef]:
        """Return the rows shuffled."""
        rows = sorted(one_pass.rows.items())
        refs = [RowRef(source, index) for source, indices in rows for index in indices]
        return shuffled(refs, one_pass.rng())


class LengthOrder(DataOrder):
    """Group rows of similar length into batches, and shuffle the batches.

    This saves padding, and gathers the rows of a source in few batches.
    """

    def refs(self, one_pass: MixturePass) -> list[RowRef]:
        """Return the rows batch by batch."""
        order = RandomOrder().refs(one_pass)
        order.sort(key=lambda ref: int(one_pass.num_tokens[ref.source][ref.index]))
        size = one_pass.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # The last batch may be short, and only the last step of a pass may be.
        *whole, last = batches
        return list(chain(*shuffled(whole, one_pass.rng("batches")), last))


_ORDERS: dict[OrderName, type[DataOrder]] = {
    "even": EvenOrder,
    "random": RandomOrder,
    "length": LengthOrder,
}


def find_order(order: OrderName | DataOrder) -> DataOrder:
    """Return the order of a name, or the order itself."""
    return order if isinstance(order, DataOrder) else _ORDERS[order]()


def ordered(order: DataOrder, one_pass: MixturePass) -> list[RowRef]:
    """Return the rows of a pass in order.

    Raises:
        RequestError: If the order loses, repeats or invents rows.
    """
    refs = order.refs(one_pass)
    if type(order) in _ORDERS.values():
        return refs
    expected = Counter(
        RowRef(source, index) for source, indices in one_pass.rows.items() for index in indices
    )
    if Counter(refs) != expected:
        raise RequestError(
            f"data.order: {type(order).__name__} must return each of the {expected.total()} rows "
            f"of a pass of stage '{one_pass.stage_name}' as often as it is in the mixture; "
            f"it returned {len(refs)} rows, {(Counter(refs) & expected).total()} of them right."
        )
    return refs


def seeded(*parts: object) -> random.Random:
    """Return a generator that depends on its parts only, on every machine and Python version."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """Return the items shuffled; ``Random.shuffle`` may change with Python's version."""
    keys = [rng.random() for _ in items]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)]


def spread(source: str, indices: Sequence[int], rng: random.Random) -> list[tuple[float, RowRef]]:
    """Place the rows of a source evenly over [0, 1), each with some jitter, in their order."""
    return [
        ((j + rng.random()) / len(indices), RowRef(source, index))
        for j, index in enumerate(indices)
    ]
