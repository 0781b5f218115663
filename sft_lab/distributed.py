"""Ranks: the processes that train one run together, one per device, and what they exchange."""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from sft_lab.errors import RequestError

T = TypeVar("T")

TIMEOUT_VARIABLE = "SFT_LAB_RANK_TIMEOUT_S"
_TIMEOUT_S = 1800


def is_rank() -> bool:
    """Return whether this process was started as one of several, by us, torchrun or Slurm."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def world_size() -> int:
    """Return the number of ranks, 1 outside of ``joined``."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's place among the ranks, 0 outside of ``joined``."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Return whether this rank writes the run's record, checkpoints and terminal."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect this process with the other ranks for the block; without others do nothing.

    Values are exchanged between CPUs; gradients between the devices that they are on.
    """
    if not is_rank():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if os.environ["RANK"] != "0":  # what the first rank warns of is enough
        logging.getLogger("sft_lab").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s()))
    yield
    # Not after an error: a rank that failed must not wait for the others.
    distributed.destroy_process_group()


def timeout_s() -> float:
    """Return how long a rank waits for the others before the run ends.

    Raises:
        RequestError: If the environment variable is not a positive number.
    """
    given = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT_S))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RequestError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, got {given}.")
    return seconds


def gather(value: T) -> list[T]:
    """Return every rank's value, in the order of ranks, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Return the sum of a CPU tensor over all ranks, the same to the bit on each."""
    summed = values.clone()
    if world_size() > 1:
        distributed.all_reduce(summed)
    return summed


def largest(number: int) -> int:
    """Return the largest of all ranks' numbers."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def by_first(make: Callable[[], T]) -> T:
    """Return on all ranks what the first one makes, or raise what it raises."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    fault: Exception | None = None
    if is_first():
        try:
            outcome[0] = make()
        except Exception as raised:
            fault, outcome[1] = raised, _portable(raised)
    distributed.broadcast_object_list(outcome)
    if (found := fault or outcome[1]) is not None:
        raise _shared_by_all(found)
    value: T = outcome[0]
    return value


def by_all(make: Callable[[], T]) -> T:
    """Return what each rank makes itself, or raise on all what the first failing one raises.

    Args:
        make: Exchanges nothing, or a rank that fails would leave the others waiting.
    """
    if world_size() == 1:
        return make()
    value, fault = None, None
    try:
        value = make()
    except Exception as raised:
        fault = raised
    faults = gather(None if fault is None else _portable(fault))
    if (found := fault or next(filter(None, faults), None)) is not None:
        raise _shared_by_all(found)
    return value  # type: ignore[return-value]  # made, as nothing was raised


def first_then_others(make: Callable[[], T]) -> T:
    """Return what each rank makes itself, the first one before the others, which find its cache."""
    if world_size() == 1:
        return make()
    value = by_all(lambda: make() if is_first() else None)
    # One of the two calls makes it.
    return by_all(lambda: value if is_first() else make())  # type: ignore[return-value]


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the ranks of each machine enter a ``with`` block one after the other."""
    turn = int(os.environ.get("LOCAL_RANK", "0"))
    last = largest(turn)
    for _ in range(turn):
        largest(0)  # returns when all have called it
    yield
    for _ in range(last - turn):
        largest(0)


def shared(
    costs: Sequence[float],
    make: Callable[[list[int]], Sequence[T]],
    within: AbstractContextManager[Any] | None = None,
) -> list[T]:
    """Return what is made of each part, in order, on all ranks; each part is made on one of them.

    Args:
        costs: The expected cost of each part.
        make: Returns a value for each of some places; not called for none.
        within: A context to make them in, which all ranks enter.
    """
    dealt = share_out(costs, world_size())
    mine = dealt[rank()]
    with within or nullcontext():
        made = list(make(mine)) if mine else []
    found = gather(made)
    by_place = {
        place: value
        for places, values in zip(dealt, found, strict=True)
        for place, value in zip(places, values, strict=True)
    }
    return [by_place[place] for place in range(len(costs))]


def _shared_by_all(fault: Exception) -> Exception:
    fault.is_shared = True  # type: ignore[attr-defined]  # the first rank alone prints it
    return fault


def _portable(fault: Exception) -> Exception:
    """Return an exception that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault


def share_out(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Deal parts out to ranks: as many to each, and costs as even as a greedy choice makes them.

    >>> share_out([9, 5, 4, 3], num_ranks=2)
    [[0, 3], [1, 2]]
    >>> share_out([9, 5, 4], num_ranks=2)
    [[0], [1, 2]]

    Args:
        costs: The cost of each part.
        num_ranks: Number of ranks; each gets at most its share of the parts, rounded up.

    Returns:
        By rank the places of its parts, in order.
    """
    most = -(-len(costs) // num_ranks)
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    sums = [0.0] * num_ranks
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        open_ranks = [index for index in range(num_ranks) if len(dealt[index]) < most]
        index = min(open_ranks, key=lambda index: sums[index])
        dealt[index].append(place)
        sums[index] += costs[place]
    return [sorted(places) for places in dealt]
