"""Prompts of a benchmark as token ids."""

import hashlib
import json
from typing import TypedDict

from torch.utils.data import Dataset
from typing_extensions import override

from sft_lab.data.corpus import Corpus, hash_rank
from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.benchmark import Benchmark, Item


class PromptBatch(TypedDict):
    """Prompts of one benchmark to be answered together.

    Attributes:
        benchmark: Its name.
        indices: Each item's place in the benchmark.
        prompts: Token ids of each prompt, not padded.
    """

    benchmark: str
    indices: list[int]
    prompts: list[list[int]]


class Prompts(Dataset[PromptBatch]):
    """The prompts of one benchmark, all in one batch: who generates knows how many go together."""

    def __init__(self, name: str, benchmark: Benchmark, corpus: Corpus) -> None:
        self.name = name
        items = benchmark.items()
        self.prompts = [prompt_ids(corpus.renderer, item) for item in items]
        self._ranked = hash_rank([item.id for item in items], seed=0)
        self.use(None)

    @property
    def digest(self) -> str:
        """SHA-256 of all prompts as the model is given them, token ids, as hex."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def use(self, num_items: int | None) -> None:
        """Use so many items from now on, all where it is None; fewer lie within more."""
        self.indices = sorted(self._ranked[:num_items])

    def __len__(self) -> int:
        return 1

    @override
    def __getitem__(self, index: int) -> PromptBatch:
        if index != 0:
            raise IndexError(index)
        return PromptBatch(
            benchmark=self.name,
            indices=self.indices,
            prompts=[self.prompts[index] for index in self.indices],
        )


def prompt_ids(renderer: Renderer, item: Item) -> list[int]:
    """Return the token ids of an item's prompt."""
    if item.text is not None:
        return renderer.continued_ids(item.text)
    return renderer.prompt_ids(item.messages)
