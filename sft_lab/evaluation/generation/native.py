"""Generation for many prompts, on transformers' public interface."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel

from sft_lab.evaluation.generation.answers import Answers
from sft_lab.evaluation.generation.architecture import sees_padding
from sft_lab.evaluation.generation.batch import Batch, joined
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.drafts import Drafts
from sft_lab.evaluation.generation.kv_cache import RoomyCache
from sft_lab.evaluation.generation.stop_strings import Decode
from sft_lab.model.kernels import uncompiled

PASS_TOKENS = 2048  # of prompts and drafts per pass, with padding; a single row may be longer
_REFILL = 4  # new rows join when one in this many places of the batch is free


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
    drafts: Sequence[Sequence[int]] | None = None,
    on_ended: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """Complete prompts; greedily by default, as ``model.generate(do_sample=False)`` does.

    The longest rows come first, so that too large a batch fails early, except for a few of all
    lengths whose drafts are tried before. A row leaves the batch when it ends and a waiting prompt
    takes its place, so that a few long answers do not hold up the rest. Drafts change completions
    only by rounding: each token is chosen as it would be without them. The model's modes, gradient
    checkpointing and the global random state are restored.

    Args:
        model: A causal language model of transformers, or PEFT's wrapper around one.
        prompts: Token ids of each prompt; each gets one completion here, whatever
            ``decoding.num_samples`` is.
        max_new_tokens: Longest completion, in tokens.
        eos_token_ids: Tokens that end a completion.
        pad_token_id: Token that pads shorter prompts on the left; never attended to.
        batch_size: Maximum number of rows at a time; all by default.
        batch_tokens: Maximum number of tokens at a time, including padding and room for
            completions; a row above it is generated alone. Unlimited by default.
        decoding: Decoding settings, with the strings that end a completion.
        samples: Sample number of each completion among its prompt's samples; 0 by default.
        decode: Turns token ids into text; needed for stop strings.
        drafts: Token ids that each greedy completion is likely to begin with, such as an earlier
            completion. One pass verifies a whole draft; wrong tokens are discarded. Ignored for a
            base with a sliding window, whose cache cannot discard tokens, and for one whose rotary
            frequencies depend on the text's length.
        on_ended: Called with the number of completions that have ended, after every pass.

    Returns:
        Token ids of each completion, without the prompt and without the token that ended it. If a
        stop string ended it, its last tokens contain that string.

    Raises:
        ValueError: If there are no prompts or an empty one, a limit is below 1, stop strings come
            without ``decode``, or drafts are not one per prompt of greedy completions.
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
    if drafts is not None and (decoding.temperature > 0 or len(drafts) != len(prompts)):
        raise ValueError(
            f"drafts must be one for each of {len(prompts)} greedy completions, "
            f"got {len(drafts)} at temperature {decoding.temperature}."
        )
    answers = Answers(prompts, max_new_tokens, eos_token_ids, decoding, samples, decode)
    batch_size = min(batch_size or len(prompts), len(prompts))
    takes_rows = RoomyCache(model.config).takes_rows
    if drafts is None or not takes_rows or _rope_depends_on_length(model):
        drafts = [()] * len(prompts)
    lengths = [len(prompt) + len(draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    waiting = deque(sorted(range(len(prompts)), key=lambda row: -lengths[row]))
    pass_tokens = PASS_TOKENS if takes_rows else None
    prefill = _Prefill(model, prompts, Drafts(drafts, max_new_tokens), pad_token_id, pass_tokens)
    batch: Batch | None = None
    with evaluating(model):
        takes_padding = not sees_padding(model)
    if takes_padding:
        waiting = deque(prefill.drafts.order(waiting))
    with _without_gradients(model), evaluating(model):
        while waiting or batch:
            rows = batch.rows if batch else []
            room = batch_size
            if waiting and batch_tokens is not None:
                longest = max(len(prompts[row]) for row in (*rows, *waiting)) + max_new_tokens
                room = min(room, max(1, batch_tokens // longest))
            free = room - len(rows)
            if waiting and (batch is None or (takes_rows and free * _REFILL >= room)):
                size = min(free, len(waiting))
                if not takes_padding:
                    size = sum(lengths[row] == lengths[waiting[0]] for row in islice(waiting, size))
                new = [waiting.popleft() for _ in range(size)]
                batch = joined([batch, *prefill(new, answers)])
            elif batch is not None:
                _advance(model, batch, answers)
                batch = batch or None
            on_ended(len(prompts) - len(waiting) - len(batch.rows if batch else []))
    return answers.token_ids


class _Prefill:
    """Reads prompts followed by their drafts, in passes of limited size.

    In a single pass, short prompts would be padded to the longest, and activations could take more
    memory than the keys and values that are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        drafts: Drafts,
        pad_token_id: int,
        pass_tokens: int | None,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.drafts = drafts
        self.pad_token_id = pad_token_id
        self.pass_tokens = pass_tokens

    def __call__(self, rows: list[int], answers: Answers) -> Iterator[Batch]:
        """Generate the first tokens of rows, and yield the rows in batches."""
        while rows:
            drafts = self.drafts.of(rows)
            size = len(drafts)
            texts = [[*self.prompts[row], *d] for row, d in zip(rows[:size], drafts, strict=True)]
            if self.pass_tokens is not None:
                size = min(size, max(1, self.pass_tokens // max(map(len, texts))))
            some, rows = rows[:size], rows[size:]
            batch = Batch(self.model, some, texts[:size], drafts[:size], self.pad_token_id)
            right = _advance(self.model, batch, answers)
            self.drafts.record(drafts[:size], right)
            if batch:
                # Until the last pass, no batch may hold memory that only its ended rows needed.
                batch.cache.compact()
                yield batch


def _advance(model: PreTrainedModel, batch: Batch, answers: Answers) -> list[int]:
    """Generate the next tokens of every row, and drop the rows that end.

    Returns:
        The number of right tokens in each row's draft.
    """
    lengths = [len(draft) for draft in batch.drafts]
    token_ids = answers.choose(batch.rows, lengths, batch.forward(model))
    chosen = iter(token_ids.tolist())
    going, right = [], []
    for row, draft in zip(batch.rows, batch.drafts, strict=True):
        continues, num_right = answers.add(row, list(islice(chosen, len(draft) + 1)), draft)
        going.append(continues)
        right.append(num_right)
    batch.push(token_ids, going, right)
    return right


def _rope_depends_on_length(model: PreTrainedModel) -> bool:
    """Return whether rotary frequencies depend on the longest position of a pass.

    If so, a pass over a draft would rotate the prompt as if the whole draft were part of the text.
    """
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(each for each in found.values() if isinstance(each, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def _without_gradients(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return the mode to generate in: inference mode, a tenth faster, if nothing is trained.

    Layers that cache tensors in a forward pass, as 8-bit ones do, could not be trained afterwards
    in inference mode.
    """
    trained = any(parameter.requires_grad for parameter in model.parameters())
    return torch.no_grad() if trained else torch.inference_mode()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turn off dropout, compiled layers, and gradient checkpointing, which disables the cache."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with uncompiled(model):
            yield
    finally:
        for module, mode in training:  # one by one: parts may differ from the whole
            module.training = mode
