"""The interface of an engine, which answers prompts and scores continuations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch

from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.kv_cache import CACHE_ROOM
from sft_lab.evaluation.generation.stop_strings import Decode

TokenPair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""


class Footprint(NamedTuple):
    """The tokens that decide how much memory generation needs on the training device.

    Attributes:
        cached: Tokens in the KV cache when a batch ends.
        in_pass: Tokens of the largest forward pass.
        logits: Tokens of a pass whose logits are computed, at most.
    """

    cached: int = 0
    in_pass: int = 0
    logits: int = 0


class Engine(ABC):
    """Answers prompts with the current weights of a model and leaves the model unchanged.

    ``serving`` brackets every evaluation; ``complete`` and ``log_likelihoods`` are called inside it
    with what it yields. A custom engine is a subclass, named in a config by
    ``evaluation.engine: {class_path: ..., init_args: ...}``.
    """

    name: ClassVar[str] = ""
    """The name in messages and in the run's record; by default that of the class."""

    gives_likelihoods: ClassVar[bool] = False
    """Whether ``log_likelihoods`` is implemented."""

    is_local: ClassVar[bool] = True
    """Whether it runs in this process and so uses ``evaluation.weights`` and local memory."""

    needs_adapters: ClassVar[bool] = False
    """Whether it supports only models trained with adapters."""

    on_ended: Callable[[int], None] = staticmethod(lambda count: None)
    """Called, by an engine that can, with the number of completions that have ended so far."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name a class that has no name of its own after itself."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.name or cls.__name__

    def serving(self, model: Any, step: int, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return a context that holds the weights to answer with during one evaluation.

        Args:
            model: A causal language model of transformers, or PEFT's wrapper around one.
            step: Optimizer steps taken; an evaluation repeated after a resume has the same step.
            dtype: Compute dtype of training.

        Returns:
            A context whose value ``complete`` and ``log_likelihoods`` take as their model.
        """
        return nullcontext(model)

    @abstractmethod
    def complete(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        pad_token_id: int,
        decode: Decode,
        decoding: Decoding = GREEDY,
        samples: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the completions of prompts as text; samples of one prompt are adjacent.

        Args:
            model: The value of ``serving``.
            prompts: Token ids of each prompt, not padded.
            max_new_tokens: Longest completion, in tokens.
            eos_token_ids: Tokens that end a completion and are not part of it.
            pad_token_id: Token that fills short prompts.
            decode: Turns token ids into text.
            decoding: Decoding settings, with the strings before which a completion ends.
            samples: The one sample number requested of each prompt, as in a continued conversation;
                all ``decoding.num_samples`` of them by default.
        """

    def log_likelihoods(
        self, model: Any, pairs: Sequence[TokenPair], *, pad_token_id: int
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation given its context.

        Args:
            model: The value of ``serving``.
            pairs: Non-empty contexts and their continuations, cut on the left if too long for the
                model.
            pad_token_id: Token that fills short rows.

        Returns:
            Nats, and whether every token is the most probable one.

        Raises:
            NotImplementedError: If the engine gives no likelihoods.
        """
        raise NotImplementedError(f"engine {self.name} gives no likelihoods.")

    def check(  # noqa: B027 - most have nothing to check
        self, base: str, *, rank: int | None, num_tokens: int
    ) -> None:
        """Check, before anything is loaded, that the engine can answer.

        Args:
            base: The base, as ``model.base`` names it.
            rank: Rank of the adapters; None if all weights are trained.
            num_tokens: Longest prompt plus completion, in tokens.

        Raises:
            RequestError: If it cannot.
        """

    def footprint(
        self, rows: int, longest_prompt: int, max_new_tokens: int, decoding: Decoding
    ) -> Footprint:
        """Return what a batch of answers needs on the training device, for the memory estimate.

        By default a pass over all prompts, then a token of every row at a time; nothing if the
        engine is not in this process.

        Args:
            rows: Answers generated at a time.
            longest_prompt: Its tokens.
            max_new_tokens: Longest completion, in tokens.
            decoding: How answers are generated.
        """
        if not self.is_local:
            return Footprint()
        cached = rows * (longest_prompt + max_new_tokens + CACHE_ROOM)
        return Footprint(cached, rows * longest_prompt, rows)

    def weights_name(self, base: str) -> str:
        """Return a name for the weights that answer, for the run's record."""
        return self.name

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to repeat an evaluation to the bit."""
        return {}

    def load_state_dict(  # noqa: B027 - most have no state
        self, state_dict: Mapping[str, Any]
    ) -> None:
        """Restore the state that ``state_dict`` returned."""
