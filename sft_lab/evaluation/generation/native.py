"""Generation for many prompts, on transformers' public interface."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sft_lab.evaluation.generation.decoding import GREEDY, Decoding, nucleus_tokens
from sft_lab.evaluation.generation.kv_cache import RoomyCache, kept_rows
from sft_lab.evaluation.generation.stop_strings import Decode, StopWatch

_REFILL = 4  # new rows are let in when a batch has lost one part in so many


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    decoding: Decoding = GREEDY,
    samples: Sequence[int] | None = None,
    decode: Decode | None = None,
) -> list[list[int]]:
    """Continue prompts; greedily, as ``model.generate(do_sample=False)`` does.

    Longest prompts come first, so that too big a batch fails early. A row leaves the batch when it
    ends, and prompts that wait take the places, so that the last long answers do not pay for the
    rest. The model's modes, gradient checkpointing and the global random state are afterwards what
    they were.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper around one.
        prompts: Token ids of each prompt; of each there is one completion here, whatever
            ``decoding.num_samples`` is.
        max_new_tokens: Longest completion, in tokens.
        eos_token_ids: Tokens that end a completion.
        pad_token_id: Token that fills the left of shorter prompts; never attended to.
        batch_size: Most rows at a time; all where not given.
        batch_tokens: Most tokens at a time, padding and room for completions counted; a row that is
            longer by itself is answered alone. Not limited where not given.
        decoding: How tokens are chosen, and the strings that end a completion.
        samples: Which of its prompt's samples each completion is; the first where not given.
        decode: The text of token ids; needed for stop strings.

    Returns:
        Token ids of each completion, without the prompt and without the token that ended it. Where
        a stop string ended it, its last tokens hold that string.

    Raises:
        ValueError: If there is no prompt, an empty one, nothing to generate, or stop strings
            without ``decode``.
    """
    if not prompts or not all(prompts):
        raise ValueError("generate needs at least one prompt and no empty one.")
    for name, value in {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    answers = _Answers(prompts, max_new_tokens, eos_token_ids, decoding, samples, decode)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batch_size = min(batch_size or len(prompts), len(prompts))
    waiting = deque(order)
    batch: _Batch | None = None
    with _without_gradients(model), evaluating(model):
        while waiting or batch:
            rows = batch.rows if batch else []
            room = batch_size
            if waiting and batch_tokens is not None:
                longest = max(len(prompts[row]) for row in (*rows, waiting[0])) + max_new_tokens
                room = min(room, max(1, batch_tokens // longest))
            free = room - len(rows)
            if waiting and (batch is None or (batch.cache.takes_rows and free * _REFILL >= room)):
                some = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                new = _Batch(model, some, [prompts[row] for row in some], pad_token_id)
                _advance(model, new, answers)
                if batch is None:
                    batch = new
                elif new:
                    batch.join(new)
            elif batch is not None:
                _advance(model, batch, answers)
            batch = batch or None
    return answers.token_ids


def _advance(model: PreTrainedModel, batch: "_Batch", answers: "_Answers") -> None:
    """Give every row one token, and let those go that it ends."""
    logits = batch.forward(model)
    token_ids = answers.choose(batch.rows, logits)
    going = answers.add(batch.rows, token_ids.tolist())
    batch.push(token_ids, going)


class _Batch:
    """The rows being answered: which prompts they are, what they have seen and what comes next."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: list[int],
        prompts: Sequence[Sequence[int]],
        pad_token_id: int,
    ) -> None:
        longest = max(map(len, prompts))
        self.rows = rows
        self.padding = padding = [longest - len(prompt) for prompt in prompts]
        self.input_ids = torch.tensor(
            [[pad_token_id] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)],
            device=model.device,
        )
        mask = [[0] * n + [1] * (longest - n) for n in padding]
        self.attention_mask = torch.tensor(mask, device=model.device)
        self.position_ids = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = RoomyCache(model.config)

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, model: PreTrainedModel) -> Tensor:
        """Return the logits of every row's next token, ``[B, V]``."""
        mask = self.attention_mask
        if self.input_ids.shape[1] == 1 and self.cache.takes_rows and _takes_masks(model):
            # What transformers would make of it for one more token, in a tenth of the time.
            mask = mask.bool()[:, None, None]
        logits: Tensor = model(
            input_ids=self.input_ids,
            attention_mask=mask,
            position_ids=self.position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def push(self, token_ids: Tensor, going: list[bool]) -> None:
        """Append a token to the rows that go on, and drop the others."""
        self.position_ids = self.position_ids[:, -1:] + 1
        if not all(going):
            kept = kept_rows(going)
            self.rows = [self.rows[index] for index in kept]
            self.padding = [self.padding[index] for index in kept]
            if not kept:
                return
            keep = torch.tensor(kept, device=token_ids.device)
            self.cache.batch_select_indices(keep)
            token_ids, self.position_ids = token_ids[keep], self.position_ids[keep]
            self.attention_mask = self.attention_mask[keep]
            self._forget_padding()
        self.input_ids = token_ids[:, None]
        seen = torch.ones_like(self.input_ids)
        self.attention_mask = torch.cat([self.attention_mask, seen], dim=-1)

    def join(self, other: "_Batch") -> None:
        """Take in rows whose prompts are not longer than what a row here has seen."""
        padding = self.attention_mask.shape[1] - other.attention_mask.shape[1]
        mask = torch.nn.functional.pad(other.attention_mask, (padding, 0))
        self.attention_mask = torch.cat([self.attention_mask, mask])
        self.input_ids = torch.cat([self.input_ids, other.input_ids])
        self.position_ids = torch.cat([self.position_ids, other.position_ids])
        self.cache.join(other.cache)
        self.padding += [padding + own for own in other.padding]
        self.rows += other.rows

    def _forget_padding(self) -> None:
        """Give up what is padding in every row, so that the longest row decides the width."""
        shared = min(self.padding)
        if shared and self.cache.takes_rows:
            self.attention_mask = self.attention_mask[:, shared:]
            self.cache.forget(shared)
            self.padding = [own - shared for own in self.padding]


class _Answers:
    """The completions so far: how their next token is chosen, and when they end."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        decoding: Decoding,
        samples: Sequence[int] | None,
        decode: Decode | None,
    ) -> None:
        self.token_ids: list[list[int]] = [[] for _ in prompts]
        self.max_new_tokens = max_new_tokens
        self.eos_token_ids = eos_token_ids
        self.decoding = decoding
        self._draws: Tensor | None = None
        if decoding.temperature > 0:
            numbers = zip(prompts, samples or [0] * len(prompts), strict=True)
            self._draws = torch.stack(
                [decoding.draws(prompt, number, max_new_tokens) for prompt, number in numbers]
            )
        self._watches: list[StopWatch] | None = None
        if decoding.stop_strings:
            if decode is None:
                raise ValueError("stop strings are found in text; generate needs decode.")
            self._watches = [StopWatch(decode, decoding.stop_strings) for _ in prompts]

    def choose(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        """Return the next token of some rows, int64 ``[B]``."""
        if self._draws is None:
            return logits.argmax(-1)
        draws = self._draws[list(rows), [len(self.token_ids[row]) for row in rows]]
        return nucleus_tokens(
            logits,
            draws.to(logits.device),
            temperature=self.decoding.temperature,
            top_p=self.decoding.top_p,
        )

    def add(self, rows: Sequence[int], token_ids: Sequence[int]) -> list[bool]:
        """Take the next token of some rows, and return which of them go on."""
        return [self._add(row, token_id) for row, token_id in zip(rows, token_ids, strict=True)]

    def _add(self, row: int, token_id: int) -> bool:
        if token_id in self.eos_token_ids:
            return False
        self.token_ids[row].append(token_id)
        if self._watches is not None and self._watches[row].add(token_id):
            return False
        return len(self.token_ids[row]) < self.max_new_tokens


def _takes_masks(model: PreTrainedModel) -> bool:
    """Say whether a mask ``[B, 1, T, S]`` reaches attention as it is."""
    sdpa: bool = model.config._attn_implementation == "sdpa"
    return sdpa and model.is_backend_compatible()


def _without_gradients(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return the mode to generate in: inference where nothing is trained, a tenth faster.

    What a forward keeps in its layers there, as 8-bit ones do, could not be trained with.
    """
    trained = any(parameter.requires_grad for parameter in model.parameters())
    return torch.no_grad() if trained else torch.inference_mode()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and with it gradient checkpointing, which would switch the cache off."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:  # one by one: parts may differ from the whole
            module.training = mode
