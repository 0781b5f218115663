"""The shipped engines: this project's loop, transformers' continuous batching, a vLLM server."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from typing_extensions import override

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.drafts import EarlierAnswers
from sft_lab.evaluation.generation.engine import Engine, Footprint, TokenPair
from sft_lab.evaluation.generation.likelihoods import log_likelihoods
from sft_lab.evaluation.generation.native import PASS_TOKENS, evaluating, generate
from sft_lab.evaluation.generation.stop_strings import Decode, before_stop
from sft_lab.evaluation.generation.vllm.engine import VllmEngine
from sft_lab.evaluation.generation.vllm.server import VllmServer
from sft_lab.model.unquantized import EvaluationWeights, evaluation_weights

EngineName = Literal["native", "transformers_continuous", "vllm"]


def make_engine(
    name: EngineName,
    batch_size: int,
    batch_tokens: int | None = None,
    vllm: VllmServer | None = None,
    *,
    weights: EvaluationWeights = "live",
    drafts: bool = True,
) -> Engine:
    """Return an engine by its short name in a config.

    Args:
        name: ``native``, ``transformers_continuous`` or ``vllm``.
        batch_size: Maximum number of answers generated at a time.
        batch_tokens: Maximum number of tokens in a batch of ``native``, including padding and room
            for answers.
        vllm: The server for ``vllm``; port 8000 on this machine by default.
        weights: The weights that an engine in this process answers with.
        drafts: Whether ``native`` tries a prompt's previous answer as a draft of the next one.
    """
    if name == "native":
        return NativeEngine(batch_size, batch_tokens, weights=weights, drafts=drafts)
    if name == "vllm":
        return VllmEngine(vllm or VllmServer(), batch_size)
    return TransformersContinuous(batch_size, batch_tokens, weights=weights)


class LocalEngine(Engine):
    """An engine in this process, which also gives likelihoods.

    Args:
        batch_size: Maximum number of answers generated at a time.
        batch_tokens: Maximum number of tokens in a batch, including padding and room for answers.
        weights: The weights to answer with; see ``EvaluationSuite``.
    """

    gives_likelihoods = True

    def __init__(
        self,
        batch_size: PositiveInt,
        batch_tokens: PositiveInt | None = None,
        *,
        weights: EvaluationWeights = "live",
    ) -> None:
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.weights: EvaluationWeights = weights

    @override
    def serving(self, model: Any, step: int, dtype: torch.dtype) -> AbstractContextManager[Any]:
        return evaluation_weights(model, self.weights, dtype)

    @override
    def log_likelihoods(
        self, model: Any, pairs: Sequence[TokenPair], *, pad_token_id: int
    ) -> list[tuple[float, bool]]:
        return log_likelihoods(
            model,
            pairs,
            pad_token_id=pad_token_id,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
        )

    @override
    def weights_name(self, base: str) -> str:
        return self.weights


class NativeEngine(LocalEngine):
    """Generates in one batch, longest rows first; waiting rows replace those that end.

    A prompt that is answered again, greedily, gets its previous answer as a draft. Samples are not
    kept as drafts, since each of their tokens depends on all probabilities before it; nor are
    answers inside a conversation, whose prompts contain earlier answers.

    Args:
        batch_size: See ``LocalEngine``.
        batch_tokens: See ``LocalEngine``.
        weights: See ``LocalEngine``.
        drafts: Whether previous answers are kept and tried.

    Attributes:
        earlier: The previous answers, part of a checkpoint; None if they are not kept.
    """

    name = "native"

    def __init__(
        self,
        batch_size: PositiveInt,
        batch_tokens: PositiveInt | None = None,
        *,
        weights: EvaluationWeights = "live",
        drafts: bool = True,
    ) -> None:
        super().__init__(batch_size, batch_tokens, weights=weights)
        self.earlier = EarlierAnswers() if drafts else None

    @override
    def serving(self, model: Any, step: int, dtype: torch.dtype) -> AbstractContextManager[Any]:
        if self.earlier is not None:
            self.earlier.begin(step)
        return super().serving(model, step, dtype)

    @override
    def footprint(
        self, rows: int, longest_prompt: int, max_new_tokens: int, decoding: Decoding
    ) -> Footprint:
        cached, _, _ = super().footprint(rows, longest_prompt, max_new_tokens, decoding)
        has_drafts = self.earlier is not None and decoding.temperature == 0
        drafted = max_new_tokens - 1 if has_drafts else 0
        one = longest_prompt + drafted
        in_pass = min(rows * one, max(PASS_TOKENS, one))
        return Footprint(cached, in_pass, max(rows, min(rows * (1 + drafted), in_pass)))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.earlier is None else {"earlier": self.earlier.state_dict()}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self.earlier is not None and "earlier" in state_dict:
            self.earlier.load_state_dict(state_dict["earlier"])

    @override
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
        rows = decoding.rows(prompts, samples)
        earlier = self.earlier if decoding.temperature == 0 and samples is None else None
        completions = generate(
            model,
            [prompt for prompt, _ in rows],
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            decoding=decoding,
            samples=[sample for _, sample in rows],
            decode=decode,
            drafts=None if earlier is None else [earlier.of(prompt) for prompt in prompts],
            on_ended=self.on_ended,
        )
        if earlier is not None:
            for prompt, completion in zip(prompts, completions, strict=True):
                earlier.keep(prompt, completion)
        return [before_stop(decode(token_ids), decoding.stop_strings) for token_ids in completions]


class TransformersContinuous(LocalEngine):
    """Generates by transformers' continuous batching: a paged cache, rows replaced as they end.

    It has no stop strings: a completion runs to its end token and is cut afterwards. Samples are
    drawn from one random stream, not by their numbers, and depend on the rest of the batch; every
    evaluation draws the same stream.
    """

    name = "transformers_continuous"

    @override
    def check(self, base: str, *, rank: int | None, num_tokens: int) -> None:
        if not torch.cuda.is_available():
            raise RequestError(
                "evaluation.engine transformers_continuous needs CUDA, found none; "
                "set it to native."
            )

    @override
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
        from transformers import ContinuousBatchingConfig, GenerationConfig

        each = decoding.num_samples if samples is None else 1
        # PEFT injects adapters into the base, so the base has the method and is adapted.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        draw: dict[str, Any] = {"do_sample": decoding.temperature > 0}
        if draw["do_sample"]:
            # top_k defaults to 50.
            draw |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(eos_token_ids),
            pad_token_id=pad_token_id,
            num_return_sequences=each,
            **draw,
        )
        # By default it takes most of the free memory, which training needs.
        tokens = max(map(len, prompts)) + max_new_tokens
        batching = ContinuousBatchingConfig(
            max_requests_per_batch=self.batch_size,
            num_blocks=self.batch_size * (tokens // ContinuousBatchingConfig.page_size + 1),
            seed=decoding.seed,
        )
        # It seeds the global random state, even for greedy decoding.
        with torch.random.fork_rng(), evaluating(base):
            outputs = base.generate_batch(
                [list(prompt) for prompt in prompts], settings, batching, warmup=False
            ).values()
        failed = [output.error for output in outputs if output.error is not None]
        if failed or len(outputs) != len(prompts) * each:
            raise RuntimeError(
                f"transformers answered {len(outputs) - len(failed)} of {len(prompts)} prompts, "
                f"{each} times each: {failed[0] if failed else 'see its log'}; "
                "set evaluation.engine to native."
            )
        texts = []
        for output in outputs:
            token_ids = output.generated_tokens
            if token_ids and token_ids[-1] in eos_token_ids:
                token_ids = token_ids[:-1]
            texts.append(before_stop(decode(token_ids), decoding.stop_strings))
        return texts
