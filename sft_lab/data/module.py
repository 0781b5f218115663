"""The Lightning data modules: one per stage, and the container that hands the active one to the Trainer."""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from sft_lab.data.corpus import Corpus
from sft_lab.data.plan import StagePlan, Window
from sft_lab.data.rendering import IGNORED, TokenizedRow
from sft_lab.data.shares import ShareValue, parse_share
from sft_lab.data.stage import Stage, check_stages, plan
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.generation import batches_longest_first
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.schedule import Schedule, StepSize


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
    """The prompts of one benchmark, longest first, so that each batch holds prompts of like length."""

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


class _From(Sampler[int]):
    """Indices in order from ``start``; its length is that of the whole pass, which Lightning counts by."""

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
        self.position = 0
        super().__init__(
            dataset,
            batch_size=None,
            sampler=_From(len(dataset)),
            num_workers=num_workers,
            # Its own generator: the loader's base seed must not draw from the training's random state.
            generator=torch.Generator(),
        )

    @override
    def __iter__(self) -> Any:
        self.position = self.sampler.start  # type: ignore[attr-defined]  # DataLoader types it as Sampler
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the pass have been handed out."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the batches that had been handed out."""
        self.sampler.start = state_dict["position"]  # type: ignore[attr-defined]


class StageDataModule(LightningDataModule):
    """The data of one stage; its loader gives the ``Batch`` of one pass.

    Args:
        corpus: The tokenised sources.
        plan: The stage's rows in order.
        micro_batch_size: Rows per forward pass.
        num_workers: Loader processes.
    """

    def __init__(
        self, corpus: Corpus, plan: StagePlan, micro_batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.plan = plan
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.pass_index = 0

    @override
    def train_dataloader(self) -> ResumableLoader:
        windows = self.plan.passes[self.pass_index]
        return ResumableLoader(
            MicroBatches(self.corpus, windows, self.micro_batch_size), self.num_workers
        )


class StagedDataModule(LightningDataModule):
    """All stages of a run; the Trainer asks it for batches and gets those of the active stage.

    Args:
        corpus: The sources; its own config group.
        evaluation: The benchmarks whose prompts the validation loop asks for; its own config group.
        stages: Stages by name, in order.
        batch_size: Rows per optimizer step.
        micro_batch_size: Rows per forward pass; the gradient does not depend on it.
        k: The replay share of DMT, for stages to refer to as ``${data.k}``.
        seed: Seed of the order within stages.
        num_workers: Loader processes.

    Raises:
        RequestError: If the schedule cannot be right, whatever the data hold.
    """

    def __init__(
        self,
        corpus: Corpus,
        evaluation: EvaluationSuite,
        stages: dict[str, Stage],
        batch_size: int = 8,
        micro_batch_size: int = 8,
        k: ShareValue | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        micro_batches_per_step(batch_size, micro_batch_size)
        if k is not None:
            parse_share("data.k", k)
        check_stages(stages, corpus.sources)
        self.corpus = corpus
        self.stages = stages
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.k = k
        self.seed = seed
        self.num_workers = num_workers
        self.evaluation = evaluation
        self.stage_modules: list[StageDataModule] = []
        self.eval_sets: list[Dataset[Any]] = []
        self.active_index = 0

    @override
    def setup(self, stage: str) -> None:
        mixed = {source for settings in self.stages.values() for source in settings.mixture}
        self.corpus.load(
            name for name in self.corpus.sources if name in mixed or self.corpus.val_rows
        )
        if not self.eval_sets:
            self.eval_sets = self._eval_sets()
        if stage == "fit" and not self.stage_modules:
            self.stage_modules = [
                StageDataModule(
                    self.corpus,
                    plan(name, settings, self.corpus, batch_size=self.batch_size, seed=self.seed),
                    self.micro_batch_size,
                    self.num_workers,
                )
                for name, settings in self.stages.items()
            ]

    def _eval_sets(self) -> list[Dataset[Any]]:
        # Four training micro-batches at once fit: nothing is kept for a backward pass.
        rows = 4 * self.micro_batch_size
        held_out = [HeldOutBatches(self.corpus, source, rows) for source in self.corpus.loaded]
        prompts = [
            PromptBatches(name, benchmark, self.corpus, self.evaluation.batch_size)
            for name, benchmark in self.evaluation.benchmarks.items()
        ]
        return [*(held_out if self.corpus.val_rows else []), *prompts]

    @property
    def schedule(self) -> Schedule:
        """The course of the whole run, known once ``setup("fit")`` has laid out the stages."""
        return Schedule(
            [
                (
                    name,
                    settings,
                    [
                        [self._window_size(window) for window in windows]
                        for windows in module.plan.passes
                    ],
                )
                for (name, settings), module in zip(
                    self.stages.items(), self.stage_modules, strict=True
                )
            ]
        )

    def _window_size(self, window: Window) -> StepSize:
        rows = (self.corpus.loaded[ref.source].rows[ref.index] for ref in window)
        return StepSize(samples=len(window), tokens=sum(len(row.input_ids) for row in rows))

    @property
    def active(self) -> StageDataModule:
        """The data module of the stage that is being trained."""
        return self.stage_modules[self.active_index]

    def activate(self, stage_index: int, pass_index: int) -> None:
        """Make one pass of one stage the source of the next batches."""
        self.active_index = stage_index
        self.active.pass_index = pass_index

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.active.train_dataloader()

    @override
    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out rows of every source, then the prompts of every benchmark."""
        return [DataLoader(eval_set, batch_size=None) for eval_set in self.eval_sets]

    @override
    def test_dataloader(self) -> list[DataLoader[Any]]:
        return self.val_dataloader()


def micro_batches_per_step(batch_size: int, micro_batch_size: int) -> int:
    """Return the Trainer's ``accumulate_grad_batches``.

    Raises:
        RequestError: If the sizes are not positive or do not divide.
    """
    if batch_size < 1 or micro_batch_size < 1 or batch_size % micro_batch_size:
        raise RequestError(
            f"data.batch_size must be a multiple of data.micro_batch_size, got {batch_size} and {micro_batch_size}."
        )
    return batch_size // micro_batch_size
