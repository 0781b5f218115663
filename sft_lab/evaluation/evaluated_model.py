"""The model under evaluation, as benchmarks see it."""

from collections.abc import Sequence
from typing import Any

from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.generation import Decoding, Engine, TokenPair


class EvaluatedModel:
    """Completes prompts and scores continuations during one evaluation.

    Args:
        weights: The value that the engine's ``serving`` yields.
        engine: The engine that answers.
        renderer: The run's tokenizer and chat template.
        decoding: Default decoding of completions; a call may override it.
    """

    def __init__(
        self, weights: Any, engine: Engine, renderer: Renderer, decoding: Decoding
    ) -> None:
        self.weights = weights
        self.engine = engine
        self.renderer = renderer
        self.decoding = decoding

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        decoding: Decoding | None = None,
        samples: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the completions of prompts; see ``Engine.complete``."""
        return self.engine.complete(
            self.weights,
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.renderer.stop_token_ids,
            pad_token_id=self.renderer.pad_token_id,
            decode=self.renderer.decode,
            decoding=decoding or self.decoding,
            samples=samples,
        )

    def log_likelihoods(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Return the log-likelihoods of continuations; see ``Engine.log_likelihoods``."""
        return self.engine.log_likelihoods(
            self.weights, pairs, pad_token_id=self.renderer.pad_token_id
        )
