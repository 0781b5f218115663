"""Answer the requests of lm-evaluation-harness: likelihoods and continuations of texts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.generation.likelihoods import max_length
from sft_lab.evaluation.reasoning import Completion

_MAX_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""


def decoding_of(settings: Mapping[str, Any], repeats: int, default: int) -> tuple[Decoding, int]:
    """Return a task's decoding and its longest answer in tokens.

    Args:
        settings: The task's ``generation_kwargs``.
        repeats: Answers to each prompt.
        default: Longest answer, if the settings have no limit.

    Raises:
        RequestError: If the engines do not support a setting.
    """
    left = dict(settings)
    until = left.pop("until", None) or []
    lengths = [left.pop(name, None) for name in _MAX_NEW_TOKENS]
    max_new_tokens = next((length for length in lengths if length is not None), default)
    temperature = float(left.pop("temperature", None) or 0.0)
    sampled = left.pop("do_sample", temperature > 0)
    top_p = float(left.pop("top_p", None) or 1.0)
    if not sampled:
        left.pop("top_k", None)  # has no effect without sampling
    if left:
        raise RequestError(
            f"its generation_kwargs set {', '.join(left)}, which no engine here supports."
        )
    stop_strings = tuple(filter(None, [until] if isinstance(until, str) else until))
    if not sampled:
        return Decoding(stop_strings=stop_strings), max_new_tokens
    return Decoding(temperature or 1.0, top_p, repeats, stop_strings=stop_strings), max_new_tokens


class HarnessModel:
    """Answers the three kinds of requests.

    Texts are tokenized as in lm-evaluation-harness: context and continuation together, spaces
    between them with the continuation, and texts that are too long are cut on the left.

    Args:
        model: The model under evaluation.
        chat: Whether contexts are conversations in JSON, not texts.
    """

    def __init__(self, model: EvaluatedModel, *, chat: bool = False) -> None:
        self.model = model
        self.renderer = model.renderer
        self.chat = chat
        self.max_length = max_length(model.weights)
        tokenizer = model.renderer.tokenizer
        first = tokenizer.bos_token_id
        self._prefix = int(tokenizer.eos_token_id if first is None else first)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of the continuation in each (context, continuation).

        Returns:
            Nats, and whether every token of it is the most probable one.
        """
        return self.model.log_likelihoods([self._pair(*request) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[tuple[str]]) -> list[float]:
        """Return the log-likelihood of each whole text, in nats.

        A text longer than the model's limit is split into windows without shared context; only the
        last one also sees the tokens before it, as far as they fit.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, (text,) in enumerate(requests):
            windows = get_rolling_token_windows(
                self._encode(text), self._prefix, self.max_length, context_len=1
            )
            found = [make_disjoint_window(window) for window in windows]
            pairs += found
            owners += [owner] * len(found)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self.model.log_likelihoods(pairs), strict=True):
            sums[owner] += value
        return sums

    def complete(
        self, contexts: Sequence[str], max_new_tokens: int, decoding: Decoding
    ) -> list[list[Completion]]:
        """Return the completions of each context, ``decoding.num_samples`` of them."""
        room = max(1, self.max_length - max_new_tokens)
        encoded = [self._encode(self._text(context)) or [self._prefix] for context in contexts]
        found = self.model.complete(
            [token_ids[-room:] for token_ids in encoded], max_new_tokens, decoding=decoding
        )
        each = decoding.num_samples
        return [found[start : start + each] for start in range(0, len(found), each)]

    def _text(self, context: str) -> str:
        if not self.chat or not context:
            return context
        messages = json.loads(context)
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        return self.renderer.text(messages, add_generation_prompt=True) + begun

    def _encode(self, text: str) -> list[int]:
        if self.chat:  # the template has added the special tokens
            ids: list[int] = self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        return self.renderer.continued_ids(text)

    def _pair(self, context: str, continuation: str) -> Pair:
        tokenizer = self.renderer.tokenizer
        if not context:
            ids: list[int] = tokenizer(continuation, add_special_tokens=False)["input_ids"]
            return (ids[:1], ids[1:]) if ids[:1] == [self._prefix] else ([self._prefix], ids)
        text = self._text(context)
        if not self.chat:
            bare = text.rstrip()
            continuation, text = text[len(bare) :] + continuation, bare
        ids = self._encode(text)
        whole = self._encode(text + continuation)
        return whole[: len(ids)] or [self._prefix], whole[len(ids) :]
