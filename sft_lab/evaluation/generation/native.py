"""Generation for many prompts, on transformers' public interface."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel

from sft_lab.evaluation.generation.answers import Answers
from sft_lab.evaluation.generation.batch import Batch, joined
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.drafts import Drafts
from sft_lab.evaluation.generation.kv_cache import RoomyCache
from sft_lab.evaluation.generation.stop_strings import Decode

PASS_TOKENS = 2048  # of prompts and drafts in one pass, padding counted; one alone may be longer
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
    drafts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Continue prompts; greedily, as ``model.generate(do_sample=False)`` does.

    The longest rows come first, so that too big a batch fails early. A row leaves the batch when it
    ends, and prompts that wait take the places, so that the last long answers do not pay for the
    rest. Drafts change no completion but by rounding: each token is chosen as it would be without
    them. The model's modes, gradient checkpointing and the global random state are afterwards what
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
        drafts: Token ids with which each completion may begin, as one does that was made before; of
            greedy ones only. What a draft has right takes one pass for all its tokens; what is
            wrong is not kept. Not used by a base with a sliding window, whose cache could not give
            up what is wrong, nor by one whose positions turn otherwise in a longer text.

    Returns:
        Token ids of each completion, without the prompt and without the token that ended it. Where
        a stop string ended it, its last tokens hold that string.

    Raises:
        ValueError: If there is no prompt, an empty one, nothing to generate, stop strings without
            ``decode``, drafts of samples, or not one draft a prompt.
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
    if drafts is None or not takes_rows or _turns_by_length(model):
        drafts = [()] * len(prompts)
    lengths = [len(prompt) + len(draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    waiting = deque(sorted(range(len(prompts)), key=lambda row: -lengths[row]))
    pass_tokens = PASS_TOKENS if takes_rows else None
    prefill = _Prefill(model, prompts, Drafts(drafts, max_new_tokens), pad_token_id, pass_tokens)
    batch: Batch | None = None
    with _without_gradients(model), evaluating(model):
        while waiting or batch:
            rows = batch.rows if batch else []
            room = batch_size
            if waiting and batch_tokens is not None:
                longest = max(len(prompts[row]) for row in (*rows, *waiting)) + max_new_tokens
                room = min(room, max(1, batch_tokens // longest))
            free = room - len(rows)
            if waiting and (batch is None or (takes_rows and free * _REFILL >= room)):
                new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                batch = joined([batch, *prefill(new, answers)])
            elif batch is not None:
                _advance(model, batch, answers)
                batch = batch or None
    return answers.token_ids


class _Prefill:
    """Reads prompts, and drafts behind them, so many tokens in a pass.

    In one pass over all of them the short ones would be padded like the longest, and activations
    could take more memory than the keys and values that stay.
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
        """Give rows their first tokens, and yield them in batches."""
        while rows:
            drafts = [self.drafts.of(row) for row in rows]
            texts = [[*self.prompts[row], *draft] for row, draft in zip(rows, drafts, strict=True)]
            size = len(rows)
            if self.pass_tokens is not None:
                size = max(1, self.pass_tokens // max(map(len, texts)))
            some, rows = rows[:size], rows[size:]
            batch = Batch(self.model, some, texts[:size], drafts[:size], self.pad_token_id)
            right = _advance(self.model, batch, answers)
            for row, num_right in zip(some, right, strict=True):
                self.drafts.tell(row, num_right)
            if batch:
                # Until the last pass, no batch may hold what only its ended rows have needed.
                batch.cache.compact()
                yield batch


def _advance(model: PreTrainedModel, batch: Batch, answers: Answers) -> list[int]:
    """Give every row its next tokens, and let those go that end.

    Returns:
        How many tokens of each row's draft were right.
    """
    lengths = [len(draft) for draft in batch.drafts]
    token_ids = answers.choose(batch.rows, lengths, batch.forward(model))
    chosen = iter(token_ids.tolist())
    going, right = [], []
    for row, draft in zip(batch.rows, batch.drafts, strict=True):
        goes_on, num_right = answers.add(row, list(islice(chosen, len(draft) + 1)), draft)
        going.append(goes_on)
        right.append(num_right)
    batch.push(token_ids, going, right)
    return right


def _turns_by_length(model: PreTrainedModel) -> bool:
    """Say whether rotary frequencies hang on the longest position of a pass.

    There a pass over a draft would turn the prompt as if the whole draft were a part of the text.
    """
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(each for each in found.values() if isinstance(each, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


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
