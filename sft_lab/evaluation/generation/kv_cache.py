"""A key-value cache for batches whose rows leave and are replaced."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

CACHE_ROOM = 16  # tokens; all that is held is copied once in so many


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for some tokens more.

    transformers' own layer copies all it holds for every token, which took a fifth of the time on a
    CPU, and again for every row that leaves. Here a token is written behind the last, a row that
    leaves is overwritten by one from the end, and new rows are written behind the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[Tensor] = []  # of keys and of values, [rows, heads, tokens, head size]
        self._size = self._start = self._end = 0  # rows and tokens of the memory in use

    @override
    def get_seq_length(self) -> int:
        return self._end - self._start

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # As they are: room can wait for the next token, when the prompt's activations are gone.
            self._memory = list(new)
            self._size, self._end = len(key_states), key_states.shape[-2]
            self.keys, self.values = new
            return new
        self._make_room(self._size, key_states.shape[-2])
        start, self._end = self._end, self._end + key_states.shape[-2]
        for memory, states in zip(self._memory, new, strict=True):
            memory[: self._size, :, start : self._end] = states
        self.keys, self.values = self._in_use()
        return self.keys, self.values

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        self._size = len(indices)
        moved = (indices != torch.arange(self._size, device=indices.device)).nonzero().squeeze(-1)
        for memory in self._memory:
            used = memory[:, :, self._start : self._end]
            used[moved] = used[indices[moved]]
        self.keys, self.values = self._in_use()

    def forget(self, num_tokens: int) -> None:
        """Give up the first tokens, which no row attends to any more."""
        self._start += num_tokens
        self.keys, self.values = self._in_use()

    def join(self, other: "RoomyLayer") -> None:
        """Append rows of no more tokens than are held here; all end together."""
        first = self._size
        self._make_room(first + other._size, 0)
        self._size += other._size
        for memory, states in zip(self._memory, other._in_use(), strict=True):
            memory[first : self._size, :, self._end - other.get_seq_length() : self._end] = states
        self.keys, self.values = self._in_use()

    def _in_use(self) -> tuple[Tensor, Tensor]:
        keys, values = (memory[: self._size, :, self._start : self._end] for memory in self._memory)
        return keys, values

    def _make_room(self, rows: int, num_tokens: int) -> None:
        held_rows, _, held_tokens, _ = self._memory[0].shape
        if rows <= held_rows and self._end + num_tokens <= held_tokens:
            return
        length = self.get_seq_length()
        self.keys = self.values = None  # or the old memory would stay beside the new
        for place, held in enumerate(self._memory):
            shape = (rows, held.shape[1], length + num_tokens + CACHE_ROOM, held.shape[3])
            # Zeros: what is not attended to is still multiplied, and must be finite.
            memory = held.new_zeros(shape)
            memory[: self._size, :, :length] = held[: self._size, :, self._start : self._end]
            self._memory[place] = memory
        self._start, self._end = 0, length


class RoomyCache(DynamicCache):
    """A cache of transformers whose layers of full attention are roomy; others are its own."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [
            RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def takes_rows(self) -> bool:
        """Whether rows can join; a window or a recurrent state is not known to be able to."""
        return all(isinstance(layer, RoomyLayer) for layer in self.layers)

    def forget(self, num_tokens: int) -> None:
        """Give up the first tokens, which no row attends to any more."""
        for layer in self.layers:
            cast(RoomyLayer, layer).forget(num_tokens)

    def join(self, other: "RoomyCache") -> None:
        """Append rows of no more tokens than are held here, so that all end together."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            cast(RoomyLayer, layer).join(cast(RoomyLayer, new))


def kept_rows(going: list[bool]) -> list[int]:
    """Return where the rows of a shrunken batch come from, as few moved as can be.

    >>> kept_rows([True, False, True, False, True])
    [0, 4, 2]
    """
    size = sum(going)
    moved = (row for row in reversed(range(size, len(going))) if going[row])
    return [row if going[row] else next(moved) for row in range(size)]
