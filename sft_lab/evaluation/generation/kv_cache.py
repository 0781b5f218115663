"""A key-value cache for batches whose rows leave and are replaced."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin
from typing_extensions import override

CACHE_ROOM = 16  # tokens; the cache is copied once per this many


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with spare room for more tokens.

    transformers' own layer copies its whole content for every token, a fifth of the time on a CPU,
    and again for every row that leaves. Here a token is appended in place, a row that leaves is
    overwritten by one from the end, and new rows are appended. Rows are aligned at their ends; the
    positions before a shorter row's first token are never attended to.
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
            # Spare room is added at the next token, once the activations of the prompt are freed.
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
        """Drop the first tokens, which no row attends to any more."""
        self._start += num_tokens
        self.keys, self.values = self._in_use()

    def forget_last(self, num_tokens: Tensor) -> None:
        """Drop this many last tokens of each row, int64 ``[rows]``, and realign the row ends."""
        places = torch.arange(self.get_seq_length(), device=num_tokens.device)
        # A row that becomes too short repeats its first token, which is never attended to.
        places = (places - num_tokens[:, None]).clamp(min=0)[:, None, :, None]
        self._memory = [
            states.gather(2, places.expand(-1, states.shape[1], -1, states.shape[3]))
            for states in self._in_use()
        ]
        self._start, self._end = 0, self.get_seq_length()
        self.keys, self.values = self._in_use()

    def compact(self) -> None:
        """Release unused memory by copying the part in use."""
        used = self._in_use()
        held = [memory.untyped_storage().nbytes() for memory in self._memory]
        if held == [states.nbytes for states in used]:
            return
        self._memory = [states.clone(memory_format=torch.contiguous_format) for states in used]
        self._start, self._end = 0, self.get_seq_length()
        self.keys, self.values = self._in_use()

    def join(self, others: Sequence["RoomyLayer"]) -> None:
        """Append the rows of other layers, aligned at their ends."""
        length = max(layer.get_seq_length() for layer in (self, *others))
        self._make_room(self._size + sum(other._size for other in others), length, 0)
        self._start = self._end - length
        for other in others:
            first, self._size = self._size, self._size + other._size
            place = slice(self._end - other.get_seq_length(), self._end)
            for memory, states in zip(self._memory, other._in_use(), strict=True):
                memory[first : self._size, :, : place.start] = 0
                memory[first : self._size, :, place] = states
            other._memory = []
            other.keys = other.values = None
        self.keys, self.values = self._in_use()

    def _in_use(self) -> tuple[Tensor, Tensor]:
        keys, values = (memory[: self._size, :, self._start : self._end] for memory in self._memory)
        return keys, values

    def _make_room(self, rows: int, length: int, num_tokens: int) -> None:
        """Grow the memory, if needed, to ``length`` tokens per row and ``num_tokens`` new ones."""
        held_rows, _, held_tokens, _ = self._memory[0].shape
        if rows <= held_rows and length <= self._end and self._end + num_tokens <= held_tokens:
            return
        own = self.get_seq_length()
        self.keys = self.values = None  # or the old memory would be kept alive next to the new one
        for place, held in enumerate(self._memory):
            shape = (rows, held.shape[1], length + num_tokens + CACHE_ROOM, held.shape[3])
            # Of rows in use, masked positions are still multiplied and must be finite: zeros. The
            # rest is written before it is read.
            memory = held.new_empty(shape)
            used = held[: self._size, :, self._start : self._end]
            memory[: self._size, :, : length - own] = 0
            memory[: self._size, :, length - own : length] = used
            self._memory[place] = memory
        self._start, self._end = length - own, length


class RoomyCache(DynamicCache):
    """A transformers cache whose full-attention layers are ``RoomyLayer``; others are unchanged."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [
            RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def takes_rows(self) -> bool:
        """Whether rows can join: not with a sliding window or a recurrent state."""
        return all(isinstance(layer, RoomyLayer) for layer in self.layers)

    @property
    def is_recurrent(self) -> bool:
        """Return whether a layer has the state of a convolution or a recurrence."""
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.layers)

    @override
    def batch_select_indices(self, indices: Tensor) -> None:
        for layer in self.layers:
            if isinstance(layer, RoomyLayer):
                layer.batch_select_indices(indices)
            else:
                # Also selects convolution and recurrent states, which batch_select_indices leaves.
                layer.reorder_cache(cast(torch.LongTensor, indices))

    def forget(self, num_tokens: int) -> None:
        """Drop the first tokens, which no row attends to any more."""
        for layer in self.layers:
            cast(RoomyLayer, layer).forget(num_tokens)

    def forget_last(self, num_tokens: Tensor) -> None:
        """Drop this many last tokens of each row, int64 ``[rows]``, and realign the row ends."""
        for layer in self.layers:
            cast(RoomyLayer, layer).forget_last(num_tokens)

    def compact(self) -> None:
        """Release unused memory by copying the part in use."""
        for layer in self.layers:
            if isinstance(layer, RoomyLayer):
                layer.compact()

    def join(self, others: Sequence["RoomyCache"]) -> None:
        """Append the rows of other caches, aligned at their ends."""
        for layer, *new in zip(self.layers, *(other.layers for other in others), strict=True):
            cast(RoomyLayer, layer).join(cast(list[RoomyLayer], new))


def kept_rows(going: list[bool]) -> list[int]:
    """Return the source index of each row of a shrunken batch, moving as few as possible.

    >>> kept_rows([True, False, True, False, True])
    [0, 4, 2]
    """
    size = sum(going)
    moved = (row for row in reversed(range(size, len(going))) if going[row])
    return [row if going[row] else next(moved) for row in range(size)]
