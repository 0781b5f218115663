"""What generates: this project's loop, transformers' continuous batching, or a vLLM server."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol

import torch

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.drafts import EarlierAnswers
from sft_lab.evaluation.generation.native import evaluating, generate
from sft_lab.evaluation.generation.stop_strings import Decode, before_stop
from sft_lab.evaluation.generation.vllm.engine import VllmEngine
from sft_lab.evaluation.generation.vllm.server import VllmServer

EngineName = Literal["native", "transformers_continuous", "vllm"]


class Engine(Protocol):
    """Answers prompts with a model as it is now, and leaves the model as it was."""

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
        """Return the completions of prompts, as text, those of a prompt behind each other.

        Args:
            model: A causal language model of transformers, or PEFT's wrapper around one; for
                ``vllm`` the name under which the server holds the adapters.
            prompts: Token ids of each prompt, not padded.
            max_new_tokens: Longest completion, in tokens.
            eos_token_ids: Tokens that end a completion, and are no part of it.
            pad_token_id: Token that fills short prompts.
            decode: The text of token ids.
            decoding: How tokens are chosen, and the strings before which a completion ends.
            samples: Number of the one sample that is wanted of each prompt, as where a conversation
                goes on; all ``decoding.num_samples`` of them where not given.
        """


def make_engine(
    name: EngineName,
    batch_size: int,
    batch_tokens: int | None = None,
    vllm: VllmServer | None = None,
    *,
    drafts: bool = True,
) -> Engine:
    """Return an engine by its name in a config.

    Args:
        name: ``native``, ``transformers_continuous`` or ``vllm``.
        batch_size: Most answers that are generated at a time.
        batch_tokens: Most tokens in a batch of ``native``, padding and room for answers counted.
        vllm: The server of ``vllm``; the one on this machine's port 8000 where not given.
        drafts: Whether ``native`` tries a prompt's last answer as a draft of the next one.

    Raises:
        RequestError: If the machine has not what the engine needs.
    """
    if name == "native":
        return NativeEngine(batch_size, batch_tokens, drafts=drafts)
    if name == "vllm":
        return VllmEngine(vllm or VllmServer(), batch_size)
    if not torch.cuda.is_available():
        raise RequestError(
            "evaluation.engine transformers_continuous needs CUDA, found none; set it to native."
        )
    return TransformersContinuous(batch_size)


class NativeEngine:
    """One batch, longest rows first; rows leave it as they end, and others take their places.

    A prompt that is answered again, greedily, gets its last answer as a draft. Samples are not kept
    as drafts, for each token of them hangs on all probabilities before it; nor are answers inside a
    conversation, whose prompts hold what was answered before.

    Args:
        batch_size: Most answers that are generated at a time.
        batch_tokens: Most tokens in a batch, padding and room for answers counted.
        drafts: Whether last answers are kept and tried.

    Attributes:
        earlier: What was answered last; part of a checkpoint. None where it is not kept. Whoever
            evaluates tells it when an evaluation begins.
    """

    def __init__(
        self, batch_size: int, batch_tokens: int | None = None, *, drafts: bool = True
    ) -> None:
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.earlier = EarlierAnswers() if drafts else None

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
        """See ``Engine``."""
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
        )
        if earlier is not None:
            for prompt, completion in zip(prompts, completions, strict=True):
                earlier.keep(prompt, completion)
        return [before_stop(decode(token_ids), decoding.stop_strings) for token_ids in completions]


class TransformersContinuous:
    """transformers' continuous batching: a paged cache, and a new prompt as soon as a row ends.

    It has no stop strings: a completion goes on to its end token and is cut then. Its samples are
    drawn from one stream, not by their numbers, and depend on what they are batched with; from one
    evaluation to the next they are the same.

    Args:
        batch_size: Most answers that are generated at a time.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

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
        """See ``Engine``.

        Raises:
            RuntimeError: If transformers gives a request up.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig

        each = decoding.num_samples if samples is None else 1
        # Adapters sit inside the base, so that what they wrap has the method and is adapted.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        draw: dict[str, Any] = {"do_sample": decoding.temperature > 0}
        if draw["do_sample"]:
            # top_k would otherwise be 50.
            draw |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=list(eos_token_ids),
            pad_token_id=pad_token_id,
            num_return_sequences=each,
            **draw,
        )
        # Left to itself it would take most of the memory that is free, which is the training's.
        tokens = max(map(len, prompts)) + max_new_tokens
        batching = ContinuousBatchingConfig(
            max_requests_per_batch=self.batch_size,
            num_blocks=self.batch_size * (tokens // ContinuousBatchingConfig.page_size + 1),
            seed=decoding.seed,
        )
        # It seeds the global random state, that of greedy decoding too.
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
