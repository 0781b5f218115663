"""Batches: the micro-batches of a planned pass, of held-out rows, of prompts; their loaders."""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from sft_lab.data.corpus import Corpus
from sft_lab.data.plan import Window
from sft_lab.data.rendering import IGNORED, TokenizedRow
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.generation import batches_longest_first


class Batch(TypedDict):
    """One micro-batch.

    Attributes:
        input_ids: int64 ``[B, T]``, right-padded.
        attention_mask: int64 ``[B, T]``, 1 at tokens and 0 at padding.
        labels: int64 ``[B, T]``, -100 wherever there is no loss; not shifted.
        source_ids: int64 ``[B]``, each row's source by its position in ``corpus.sources``.
        window_target_tokens: int64 ``[]``, target tokens of the whole accumulation window.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    source_ids: Tensor
    window_target_tokens: Tensor


def collate(
    rows: Sequence[TokenizedRow], source_ids: Sequence[int], pad_token_id: int, window_tokens: int
) -> Batch:
    """Pad rows on the right to the longest of them."""
    length = max(len(row.input_ids) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (length - len(values))

    return Batch(
        input_ids=torch.tensor([padded(row.input_ids, pad_token_id) for row in rows]),
        attention_mask=torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        labels=torch.tensor([padded(row.labels, IGNORED) for row in rows]),
        source_ids=torch.tensor(source_ids),
        window_target_tokens=torch.tensor(window_tokens),
    )


class MicroBatches(Dataset[Batch]):
    """The micro-batches of one pass, in the order of its plan."""

    def __init__(self, corpus: Corpus, windows: Sequence[Window], micro_batch_size: int) -> None:
        self.corpus = corpus
        self.source_ids = {name: index for index, name in enumerate(corpus.sources)}
        self.micro_batches = [
            (window[start : start + micro_batch_size], window)
            for window in windows
            for start in range(0, len(window), micro_batch_size)
        ]

    def __len__(self) -> int:
        return len(self.micro_batches)

    @override
    def __getitem__(self, index: int) -> Batch:
        refs, window = self.micro_batches[index]
        loaded = self.corpus.loaded
        return collate(
            [loaded[ref.source].rows[ref.index] for ref in refs],
            [self.source_ids[ref.source] for ref in refs],
            self.corpus.renderer.pad_token_id,
            sum(loaded[ref.source].rows[ref.index].num_target_tokens for ref in window),
        )


class HeldOutBatches(Dataset[Batch]):
    """Batches of the rows of one source that no stage trains on, longest first."""

    def __init__(self, corpus: Corpus, source: str, batch_size: int) -> None:
        self.corpus = corpus
        self.source_id = list(corpus.sources).index(source)
        rows = sorted(corpus.loaded[source].held_out, key=lambda row: -len(row.input_ids))
        self.batches = [
            rows[start : start + batch_size] for start in range(0, len(rows), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    @override
    def __getitem__(self, index: int) -> Batch:
        rows = self.batches[index]
        num_target_tokens = sum(row.num_target_tokens for row in rows)
        return collate(
            rows, [self.source_id] * len(rows), self.corpus.renderer.pad_token_id, num_target_tokens
        )


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


class PromptBatches(Dataset[PromptBatch]):
    """The prompts of one benchmark, longest first: the prompts of a batch are of like length."""

    def __init__(self, name: str, benchmark: Benchmark, corpus: Corpus, batch_size: int) -> None:
        self.name = name
        self.prompts = [corpus.renderer.prompt_ids(item.messages) for item in benchmark.items()]
        self.batches = batches_longest_first([len(prompt) for prompt in self.prompts], batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    @override
    def __getitem__(self, index: int) -> PromptBatch:
        indices = self.batches[index]
        return PromptBatch(
            benchmark=self.name, indices=indices, prompts=[self.prompts[i] for i in indices]
        )


class PassSampler(Sampler[int]):
    """Indices in order from ``start``.

    Its length is that of the whole pass, by which Lightning knows the last batch.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.start = 0

    def __len__(self) -> int:
        return self.length

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.length))


class ResumableLoader(DataLoader[Batch]):
    """A loader over a planned pass that goes on behind the last batch handed out.

    Lightning keeps its ``state_dict`` in the checkpoint and gives it back before the first batch.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int) -> None:
        self.pass_sampler = PassSampler(len(dataset))
        self.position = 0
        super().__init__(
            dataset,
            batch_size=None,
            sampler=self.pass_sampler,
            num_workers=num_workers,
            # Its own, or every pass would draw a seed from the random state of the training.
            generator=torch.Generator(),
        )

    @override
    def __iter__(self) -> Any:
        self.position = self.pass_sampler.start
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the pass have been handed out."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the batches that had been handed out."""
        self.position = self.pass_sampler.start = state_dict["position"]


def eval_loader(dataset: Dataset[Any]) -> DataLoader[Any]:
    """Return a loader over batches in order that leaves the random state of the training alone."""
    return DataLoader(dataset, batch_size=None, generator=torch.Generator())
