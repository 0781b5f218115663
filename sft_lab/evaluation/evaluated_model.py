"""The model under evaluation, as benchmarks see it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.generation import Decoding, Engine, TokenPair
from sft_lab.evaluation.generation.stop_strings import before_stop
from sft_lab.evaluation.reasoning import Completion, ends_in_reasoning, split_reasoning
from sft_lab.model.sharding import in_step


class EvaluatedModel:
    """Completes prompts and scores continuations during one evaluation.

    Args:
        weights: The value that the engine's ``serving`` yields.
        engine: The engine that answers.
        renderer: The run's tokenizer and chat template.
        decoding: Default decoding of completions; a call may override it.
        cut_reasoning: Whether completions are split into reasoning and answer.
    """

    def __init__(
        self,
        weights: Any,
        engine: Engine,
        renderer: Renderer,
        decoding: Decoding,
        *,
        cut_reasoning: bool = False,
    ) -> None:
        self.weights = weights
        self.engine = engine
        self.renderer = renderer
        self.decoding = decoding
        self.cut_reasoning = cut_reasoning

    def at_temperature(self, temperature: float) -> "EvaluatedModel":
        """Return the model with another default temperature."""
        return EvaluatedModel(
            self.weights,
            self.engine,
            self.renderer,
            replace(self.decoding, temperature=temperature),
            cut_reasoning=self.cut_reasoning,
        )

    def in_step(self) -> AbstractContextManager[None]:
        """Return a context in which ranks may answer different numbers of prompts."""
        return in_step(self.weights)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        decoding: Decoding | None = None,
        samples: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Return the completions of prompts; see ``Engine.complete``."""
        decoding = decoding or self.decoding
        # Stop strings end answers; reasoning may contain them.
        stop_strings = decoding.stop_strings if self.cut_reasoning else ()
        texts = self.engine.complete(
            self.weights,
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.renderer.stop_token_ids,
            pad_token_id=self.renderer.pad_token_id,
            decode=self.renderer.decode,
            decoding=replace(decoding, stop_strings=()) if stop_strings else decoding,
            samples=samples,
        )
        if not self.cut_reasoning:
            return [Completion(text) for text in texts]
        each = decoding.num_samples if samples is None else 1
        is_open = [ends_in_reasoning(self.renderer, p) for p in prompts for _ in range(each)]
        found = [
            split_reasoning(text, is_open=opened)
            for text, opened in zip(texts, is_open, strict=True)
        ]
        return [Completion(before_stop(c.answer, stop_strings), c.reasoning) for c in found]

    def log_likelihoods(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Return the log-likelihoods of continuations; see ``Engine.log_likelihoods``."""
        return self.engine.log_likelihoods(
            self.weights, pairs, pad_token_id=self.renderer.pad_token_id
        )
