"""Decoding settings: greedy, or sampling with reproducible seeds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_lab.config.ranges import NonNegativeFloat, PositiveInt, PositiveShare, Seed
from sft_lab.errors import RequestError


@dataclass(frozen=True)
class Decoding:
    """Settings for generating answers from a model's probabilities.

    A sample depends on the seed, its number and its prompt alone, not on the rest of the batch or
    the random state of training. All evaluations of a run draw the same numbers, so that scores
    change only because the model does.

    Args:
        temperature: Divides the logits; 0 takes the most probable token.
        top_p: Draw from the most probable tokens that together reach this probability, in (0, 1].
        num_samples: Number of answers to each prompt.
        seed: Seed of the draws.
        stop_strings: An answer ends before the first of these that is complete.

    Raises:
        RequestError: If a value is out of range, or would have no effect.
    """

    temperature: NonNegativeFloat = 0.0
    top_p: PositiveShare = 1.0
    num_samples: PositiveInt = 1
    seed: Seed = 0
    stop_strings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.temperature == 0 and (self.num_samples > 1 or self.top_p < 1):
            raise RequestError(
                "decoding: at temperature 0 every answer is the most probable one; got num_samples "
                f"{self.num_samples} and top_p {self.top_p}; set temperature above 0, or both to 1."
            )
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise RequestError(
                "decoding: stop_strings must be a list of non-empty strings, "
                f"got {self.stop_strings!r}."
            )

    def rows(
        self, prompts: Sequence[Sequence[int]], samples: Sequence[int] | None
    ) -> list[tuple[Sequence[int], int]]:
        """Return the prompt and the sample number of every requested answer, in order.

        Args:
            prompts: Token ids of each prompt.
            samples: The one sample number requested of each prompt; all of them by default.

        >>> SAMPLED = Decoding(temperature=1.0, num_samples=2)
        >>> SAMPLED.rows([[5], [6]], None)
        [([5], 0), ([5], 1), ([6], 0), ([6], 1)]
        >>> SAMPLED.rows([[5], [6]], [1, 0])
        [([5], 1), ([6], 0)]
        """
        if samples is not None:
            return list(zip(prompts, samples, strict=True))
        return [(prompt, sample) for prompt in prompts for sample in range(self.num_samples)]

    def seed_of(self, prompt: Sequence[int], sample: int) -> int:
        """Return the seed of one answer, in [0, 2^63)."""
        key = f"{self.seed} {sample} {' '.join(map(str, prompt))}"
        digest = hashlib.sha256(key.encode()).digest()
        return int.from_bytes(digest[:8]) % 2**63

    def draws(self, prompt: Sequence[int], sample: int, num_tokens: int) -> Tensor:
        """Return the random numbers of one answer, float32 ``[num_tokens]`` in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed_of(prompt, sample))
        return torch.rand(num_tokens, generator=generator)


GREEDY = Decoding()


def nucleus_tokens(logits: Tensor, draws: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Draw a token for each row from the nucleus of its distribution.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.

    Args:
        logits: ``[B, V]``.
        draws: Uniform numbers in [0, 1), ``[B]``; the same draw gives the same token.
        temperature: Above 0.
        top_p: In (0, 1].

    Returns:
        Token ids, int64 ``[B]``.

    >>> logits = torch.tensor([[0.1, 0.6, 0.3]]).log().expand(3, 3)
    >>> nucleus_tokens(logits, torch.tensor([0.0, 0.65, 0.95]), temperature=1.0, top_p=1.0).tolist()
    [1, 2, 0]
    >>> nucleus_tokens(logits, torch.tensor([0.0, 0.65, 0.95]), temperature=1.0, top_p=0.7).tolist()
    [1, 1, 2]
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    probabilities, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = probabilities.cumsum(-1)
    last = (reached - probabilities < top_p).sum(-1, keepdim=True) - 1
    # Neither of two rounding errors may lead out of the nucleus.
    place = torch.searchsorted(reached, draws[:, None] * reached.gather(-1, last), right=True)
    return token_ids.gather(-1, place.minimum(last)).squeeze(-1)
