"""The plan of a stage: which rows go into which optimizer step, known before training starts."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_lab.data.rendering import TokenizedRow


@dataclass(frozen=True, order=True, slots=True)
class RowRef:
    """A row of a source, by the source's name and the row's index in it."""

    source: str
    index: int


Window = list[RowRef]
"""The rows of one optimizer step, in the order in which they are trained."""


def seeded(*parts: object) -> random.Random:
    """Return a generator that depends on its parts only, on every machine and Python version."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def spread_evenly(
    rows: Mapping[str, Sequence[int]], seed: int, stage_name: str, pass_index: int
) -> list[RowRef]:
    """Order the rows of one pass so that every stretch of it holds the whole mixture.

    The j-th of a source's n rows stands at (j + jitter) / n of the pass. Without it a stage's few
    replayed rows can fall together, and what they keep alive becomes a matter of luck.

    Args:
        rows: Row indices by source.
        seed: Seeds the order of each source's rows and the jitter.
        stage_name: So that stages differ in their order.
        pass_index: So that the passes of a stage differ in their order.
    """
    placed: list[tuple[float, RowRef]] = []
    for source, indices in rows.items():
        chance = seeded(seed, stage_name, pass_index, source)
        # random() alone is promised to stay the same over Python versions; shuffle() is not.
        shuffled = [index for _, index in sorted((chance.random(), index) for index in indices)]
        count = len(shuffled)
        placed += [
            ((j + chance.random()) / count, RowRef(source, index))
            for j, index in enumerate(shuffled)
        ]
    return [ref for _, ref in sorted(placed)]


@dataclass(frozen=True)
class StagePlan:
    """What one stage will train on, to the row.

    Attributes:
        name: The stage's name.
        passes: For every pass over the mixture its windows, one per optimizer step. The last pass
            ends early where the stage is limited by steps or tokens.
    """

    name: str
    passes: list[list[Window]]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return sum(len(windows) for windows in self.passes)

    def count(self, tokenized: Mapping[str, Sequence[TokenizedRow]]) -> dict[str, dict[str, int]]:
        """Return ``samples``, ``tokens`` and ``target_tokens`` by source, over all passes."""
        samples: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        target_tokens: Counter[str] = Counter()
        for ref in (ref for windows in self.passes for window in windows for ref in window):
            row = tokenized[ref.source][ref.index]
            samples[ref.source] += 1
            tokens[ref.source] += len(row.input_ids)
            target_tokens[ref.source] += row.num_target_tokens
        return {
            source: {
                "samples": samples[source],
                "tokens": tokens[source],
                "target_tokens": target_tokens[source],
            }
            for source in samples
        }


def plan_stage(
    name: str,
    rows: Mapping[str, Sequence[int]],
    tokenized: Mapping[str, Sequence[TokenizedRow]],
    *,
    batch_size: int,
    seed: int,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
) -> StagePlan:
    """Lay out a stage; it ends at the first of its limits that is reached.

    Args:
        name: The stage's name; part of the seed of its order.
        rows: The rows of its mixture, indices by source.
        tokenized: All tokenised rows, by source.
        batch_size: Rows per optimizer step.
        seed: Seed of the order.
        epochs: Passes over the mixture.
        max_steps: Optimizer steps.
        max_tokens: Tokens, prompts included; the stage ends with the step that reaches them.

    Raises:
        ValueError: If no limit is given or the mixture is empty; both are checked with the config.
    """
    if epochs is None and max_steps is None and max_tokens is None:
        raise ValueError(f"Stage '{name}' has no end: give epochs, max_steps or max_tokens.")
    if not any(rows.values()):
        raise ValueError(f"Stage '{name}' has no rows.")
    passes: list[list[Window]] = []
    steps = tokens = 0

    def is_full() -> bool:
        return (max_steps is not None and steps >= max_steps) or (
            max_tokens is not None and tokens >= max_tokens
        )

    while not is_full() and (epochs is None or len(passes) < epochs):
        order = spread_evenly(
            {source: picked for source, picked in rows.items() if picked}, seed, name, len(passes)
        )
        windows: list[Window] = []
        for start in range(0, len(order), batch_size):
            if is_full():
                break
            window = order[start : start + batch_size]
            windows.append(window)
            steps += 1
            tokens += sum(len(tokenized[ref.source][ref.index].input_ids) for ref in window)
        passes.append(windows)
    return StagePlan(name, passes)
