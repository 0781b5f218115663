"""The answers during generation: choosing the next token, and detecting the end."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sft_lab.evaluation.generation.decoding import Decoding, nucleus_tokens
from sft_lab.evaluation.generation.stop_strings import Decode, StopWatch


class Answers:
    """The completions so far.

    Args:
        prompts: Token ids of each prompt.
        max_new_tokens: Longest completion, in tokens.
        eos_token_ids: Tokens that end a completion.
        decoding: Decoding settings, with the strings that end a completion.
        samples: Sample number of each completion among its prompt's samples; 0 by default.
        decode: Turns token ids into text; needed for stop strings.

    Attributes:
        token_ids: Token ids of each completion, without the token that ended it.

    Raises:
        ValueError: If there are stop strings but no ``decode``.
    """

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
                raise ValueError("stop strings are searched in text: generate needs decode.")
            self._watches = [StopWatch(decode, decoding.stop_strings) for _ in prompts]

    def choose(self, rows: Sequence[int], lengths: Sequence[int], logits: Tensor) -> Tensor:
        """Return the next token of some rows, and the token after each token of their drafts.

        Args:
            rows: Indices of the ``B`` completions.
            lengths: Draft length of each, in tokens; samples have no drafts.
            logits: ``[B, T, V]`` of the last input tokens, drafts at the end; ``T`` is 1 plus the
                length of the longest draft.

        Returns:
            Token ids, int64 ``[N]``, row by row: ``N`` is ``B`` plus the tokens of all drafts.
        """
        if self._draws is None:
            places = torch.arange(logits.shape[1] - 1, -1, -1, device=logits.device)
            is_asked = places <= torch.tensor(lengths, device=logits.device)[:, None]
            return logits.argmax(-1)[is_asked]
        draws = self._draws[list(rows), [len(self.token_ids[row]) for row in rows]]
        return nucleus_tokens(
            logits[:, -1],
            draws.to(logits.device),
            temperature=self.decoding.temperature,
            top_p=self.decoding.top_p,
        )

    def add(self, row: int, token_ids: Sequence[int], draft: Sequence[int]) -> tuple[bool, int]:
        """Append the chosen tokens of one completion, up to the first wrong token of its draft.

        Args:
            row: Index of the completion.
            token_ids: The chosen tokens, one more than the draft has.
            draft: The draft, which may be empty.

        Returns:
            Whether the completion continues, and how many tokens of the draft were right.
        """
        for place, token_id in enumerate(token_ids):
            going = self._add(row, token_id)
            if not going or place == len(draft) or token_id != draft[place]:
                break
        return going, place

    def _add(self, row: int, token_id: int) -> bool:
        if token_id in self.eos_token_ids:
            return False
        self.token_ids[row].append(token_id)
        if self._watches is not None and self._watches[row].add(token_id):
            return False
        return len(self.token_ids[row]) < self.max_new_tokens
