"""A key-value cache for batches whose rows leave and are replaced."""

from collections.abc import Sequence
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
    leaves is overwritten by one from the end, and new rows are written behind the others. Rows end
    together; what a shorter one has before its first token is never attended to.
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
        self._make_room(self._size, self.get_seq_length(), key_states.shape[-2])
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

    def forget_last(self, num_tokens: Tensor) -> None:
        """Give up the last tokens of each row, int64 ``[rows]``; the others again end together."""
        places = torch.arange(self.get_seq_length(), device=num_tokens.device)
        # What a row has too little of is its first token again, to which no row attends.
        places = (places - num_tokens[:, None]).clamp(min=0)[:, None, :, None]
        self._memory = [
            states.gather(2, places.expand(-1, states.shape[1], -1, states.shape[3]))
            for states in self._in_use()
        ]
        self._start, self._end = 0, self.get_seq_length()
        self.keys, self.values = self._in_use()

    def compact(self) -> None:
        """Copy what is in use, where that lies in a larger memory, and give the rest up."""
        used = self._in_use()
        held = [memory.untyped_storage().nbytes() for memory in self._memory]
        if held == [states.nbytes for states in used]:
            return
        self._memory = [states.clone(memory_format=torch.contiguous_format) for states in used]
        self._start, self._end = 0, self.get_seq_length()
        self.keys, self.values = self._in_use()

    def join(self, others: Sequence["RoomyLayer"]) -> None:
        """Take over rows of other layers, behind the own; all end together."""
        length = max(layer.get_seq_length() for layer in (self, *others))
        self._make_room(self._size + sum(other._size for other in others), length, 0)
        self._start = self._end - length
        for other in others:
            first, self._size = self._size, self._size + other._size
            place = slice(self._end - other.get_seq_length(), self._end)
            for memory, states in zip(self._memory, other._in_use(), strict=True):
                memory[first : self._size, :, place] = states
            other._memory = []
            other.keys = other.values = None
        self.keys, self.values = self._in_use()

    def _in_use(self) -> tuple[Tensor, Tensor]:
        keys, values = (memory[: self._size, :, self._start : self._end] for memory in self._memory)
        return keys, values

    def _make_room(self, rows: int, length: int, num_tokens: int) -> None:
        """See to it that so many tokens up to the end have a place, and so many new ones."""
        held_rows, _, held_tokens, _ = self._memory[0].shape
        if rows <= held_rows and length <= self._end and self._end + num_tokens <= held_tokens:
            return
        own = self.get_seq_length()
        self.keys = self.values = None  # or the old memory would stay beside the new
        for place, held in enumerate(self._memory):
            shape = (rows, held.shape[1], length + num_tokens + CACHE_ROOM, held.shape[3])
            # Zeros: what is not attended to is still multiplied, and must be finite.
            memory = held.new_zeros(shape)
            used = held[: self._size, :, self._start : self._end]
            memory[: self._size, :, length - own : length] = used
            self._memory[place] = memory
        self._start, self._end = length - own, length


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

    def forget_last(self, num_tokens: Tensor) -> None:
        """Give up the last tokens of each row, int64 ``[rows]``; the others again end together."""
        for layer in self.layers:
            cast(RoomyLayer, layer).forget_last(num_tokens)

    def compact(self) -> None:
        """Copy what is in use, where that lies in a larger memory, and give the rest up."""
        for layer in self.layers:
            if isinstance(layer, RoomyLayer):
                layer.compact()

    def join(self, others: Sequence["RoomyCache"]) -> None:
        """Take over the rows of other caches, behind the own; all end together."""
        for layer, *new in zip(self.layers, *(other.layers for other in others), strict=True):
            cast(RoomyLayer, layer).join(cast(list[RoomyLayer], new))


def kept_rows(going: list[bool]) -> list[int]:
    """Return where the rows of a shrunken batch come from, as few moved as can be.

    >>> kept_rows([True, False, True, False, True])
    [0, 4, 2]
    """
    size = sum(going)
    moved = (row for row in reversed(range(size, len(going))) if going[row])
    return [row if going[row] else next(moved) for row in range(size)]
