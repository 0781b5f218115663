"""The rows that are generated together."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sft_lab.evaluation.generation.architecture import cache_name
from sft_lab.evaluation.generation.kv_cache import RoomyCache, kept_rows


class Batch:
    """The rows being generated: their cache, and their next inputs.

    Rows are left-padded: all end at the same position, with the last token of the row or of its
    draft.

    Args:
        model: The model that answers.
        rows: Indices of their prompts.
        texts: Token ids of each prompt and its draft.
        drafts: Token ids of each draft; checked by the first pass, then dropped.
        pad_token_id: Padding token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: list[int],
        texts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        pad_token_id: int,
    ) -> None:
        longest = max(map(len, texts))
        self.rows = rows
        self.drafts = drafts
        self.padding = [longest - len(text) for text in texts]
        padded = [[pad_token_id] * n + list(t) for n, t in zip(self.padding, texts, strict=True)]
        self.input_ids = torch.tensor(padded, device=model.device)
        self.attention_mask = self._mask(longest)
        self.position_ids = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = RoomyCache(model.config)
        self.cache_name = cache_name(model)

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, model: PreTrainedModel) -> Tensor:
        """Return the logits at every row's last token and its draft's tokens, ``[B, T, V]``."""
        mask: Tensor | None = self.attention_mask
        if self.cache_name == "cache_params" and self.cache.has_previous_state():
            mask = None  # there is no attention, and the padding has been read
        elif self.input_ids.shape[1] == 1 and self.cache.takes_rows and _takes_masks(model):
            # The mask that transformers would build for one more token, in a tenth of the time.
            mask = self.attention_mask.bool()[:, None, None]
        logits: Tensor = model(
            input_ids=self.input_ids,
            attention_mask=mask,
            position_ids=self.position_ids,
            **{self.cache_name: self.cache},
            use_cache=True,
            logits_to_keep=1 + max(map(len, self.drafts)),
        ).logits
        return logits

    def push(self, token_ids: Tensor, going: list[bool], right: list[int]) -> None:
        """Append a token to the rows that continue, and drop the others.

        Args:
            token_ids: The token chosen after a row's last token and after every token of its draft,
                ``[N]``, row by row.
            going: Whether each row continues.
            right: Number of tokens kept of each row's draft.
        """
        self.position_ids = self.position_ids[:, -1:] + 1
        wrong = [len(draft) - n for draft, n in zip(self.drafts, right, strict=True)]
        if len(token_ids) > len(self):
            ends = accumulate(len(draft) + 1 for draft in self.drafts)
            last = [end - 1 - n for end, n in zip(ends, wrong, strict=True)]
            token_ids = token_ids[self._tensor(last)]
            self.position_ids = self.position_ids - self._tensor(wrong)[:, None]
        self.drafts = [()] * len(self)
        if not all(going):
            kept = kept_rows(going)
            self._keep(kept)
            if not kept:
                return
            token_ids, wrong = token_ids[self._tensor(kept)], [wrong[index] for index in kept]
        if any(wrong):
            self.cache.forget_last(self._tensor(wrong))
            self.padding = [n + more for n, more in zip(self.padding, wrong, strict=True)]
            self.attention_mask = self._mask(self.attention_mask.shape[1])
        self._forget_padding()
        self.input_ids = token_ids[:, None]
        seen = torch.ones_like(self.input_ids)
        self.attention_mask = torch.cat([self.attention_mask, seen], dim=-1)

    def join(self, others: Sequence["Batch"]) -> None:
        """Append the rows of other batches."""
        longest = max(batch.attention_mask.shape[1] for batch in (self, *others))
        batches = (self, *others)
        self.padding = [
            longest - batch.attention_mask.shape[1] + n for batch in batches for n in batch.padding
        ]
        self.rows = [row for batch in batches for row in batch.rows]
        self.drafts = [()] * len(self)
        self.input_ids = torch.cat([batch.input_ids for batch in batches])
        self.position_ids = torch.cat([batch.position_ids for batch in batches])
        self.attention_mask = self._mask(longest)
        self.cache.join([batch.cache for batch in others])

    def _keep(self, kept: list[int]) -> None:
        self.rows = [self.rows[index] for index in kept]
        self.drafts = [()] * len(kept)
        self.padding = [self.padding[index] for index in kept]
        if kept:
            keep = self._tensor(kept)
            self.cache.batch_select_indices(keep)
            self.position_ids = self.position_ids[keep]
            self.attention_mask = self.attention_mask[keep]

    def _forget_padding(self) -> None:
        """Drop padding that all rows share, so that the longest row sets the width."""
        shared = min(self.padding)
        if shared and self.cache.takes_rows:
            self.attention_mask = self.attention_mask[:, shared:]
            self.cache.forget(shared)
            self.padding = [own - shared for own in self.padding]

    def _mask(self, num_tokens: int) -> Tensor:
        """Return 1 where a token is attended to, 0 where a row is padded, ``[B, T]``."""
        return self._tensor([[0] * n + [1] * (num_tokens - n) for n in self.padding])

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self.input_ids.device)


def joined(batches: Sequence[Batch | None]) -> Batch | None:
    """Join the batches that have rows left; None if there are none."""
    going = [batch for batch in batches if batch]
    if not going:
        return None
    first, *others = going
    if others:
        first.join(others)
    return first


def _takes_masks(model: PreTrainedModel) -> bool:
    """Return whether a mask ``[B, 1, T, S]`` reaches attention unchanged."""
    sdpa: bool = model.config._attn_implementation == "sdpa"
    return sdpa and model.is_backend_compatible()
