"""Prompts of a benchmark as token ids."""

import hashlib
import json
from collections.abc import Collection, Sequence

from sft_lab.data.hash_rank import hash_rank
from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.item import Item


class Prompts:
    """The prompts of one benchmark's items.

    Args:
        items: The items, in the order of their file.
        renderer: The run's tokenizer and chat template.

    Attributes:
        token_ids: Token ids of each prompt, not padded.
    """

    def __init__(self, items: Sequence[Item], renderer: Renderer) -> None:
        self.token_ids = [prompt_ids(renderer, item) for item in items]
        self._ranked = hash_rank([item.id for item in items], seed=0)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids of all prompts, as hex."""
        return hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()

    def indices(
        self, num_items: int | None = None, among: Collection[int] | None = None
    ) -> list[int]:
        """Return the indices of this many items, all by default; smaller choices nest in larger.

        Args:
            num_items: Number of items.
            among: Indices to choose from; all by default.
        """
        ranked = self._ranked
        if among is not None:
            chosen = set(among)
            ranked = [index for index in ranked if index in chosen]
        return sorted(ranked[:num_items])


def prompt_ids(renderer: Renderer, item: Item) -> list[int]:
    """Return the token ids of an item's prompt."""
    if item.text is not None:
        return renderer.continued_ids(item.text)
    return renderer.prompt_ids(item.messages)
