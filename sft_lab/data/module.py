"""The Lightning data modules: one per stage, and the container that hands on the active one's."""

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from sft_lab.data.batches import (
    HeldOutBatches,
    MicroBatches,
    Prompts,
    ResumableLoader,
    bin_length,
    eval_loader,
)
from sft_lab.data.corpus import Corpus
from sft_lab.data.plan import Order, StagePlan, Window
from sft_lab.data.shares import ShareValue, parse_share
from sft_lab.data.stage import Stage, check_stages, plan, trains
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.schedule import Schedule, StepSize

HELD_OUT_FACTOR = 4
"""Training micro-batches that fit at once where nothing is kept for a backward pass."""


class StageDataModule(LightningDataModule):
    """The data of one stage; its loader gives the ``Batch`` of one pass.

    Args:
        corpus: The tokenised sources.
        plan: The stage's rows in order.
        micro_batch_size: Training sequences per forward pass.
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
        evaluation: The benchmarks whose prompts the validation loop asks for; its own config
            group.
        stages: Stages by name, in order.
        batch_size: Training sequences per optimizer step.
        micro_batch_size: Training sequences per forward pass; the gradient does not depend on it.
        order: ``even`` spreads every source evenly over each pass of a stage; ``random`` and
            ``length``, batches of like length, do not, and are there to be compared with.
        packing: Pack rows into training sequences of up to ``corpus.max_length`` tokens, instead of
            one sequence a row. Rows of a sequence do not see each other.
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
        order: Order = "even",
        packing: bool = False,
        k: ShareValue | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        micro_batches_per_step(batch_size, micro_batch_size)
        if num_workers < 0:
            raise RequestError(f"data.num_workers must be 0 or more, got {num_workers}.")
        if k is not None:
            parse_share("data.k", k)
        check_stages(stages, corpus.sources)
        self.corpus = corpus
        self.stages = stages
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.order: Order = order
        self.packing = packing
        self.k = k
        self.seed = seed
        self.num_workers = num_workers
        self.evaluation = evaluation
        self.stage_modules: list[StageDataModule] = []
        self.eval_sets: list[Dataset[Any]] = []
        self.active_index = 0

    @override
    def setup(self, stage: str) -> None:
        mixed = {
            source
            for source in self.corpus.sources
            if any(trains(settings, source) for settings in self.stages.values())
        }
        items = {
            name: {item.id: benchmark.texts(item) for item in benchmark.all_items()}
            for name, benchmark in self.evaluation.benchmarks.items()
        }
        names = [name for name in self.corpus.sources if name in mixed or self.corpus.val_rows]
        self.corpus.load(names, items)
        if not self.eval_sets:
            self.eval_sets = self._eval_sets()
        if stage == "fit" and not self.stage_modules:
            self.stage_modules = [
                StageDataModule(
                    self.corpus,
                    plan(
                        name,
                        settings,
                        self.corpus,
                        batch_size=self.batch_size,
                        order=self.order,
                        packing=self.packing,
                        seed=self.seed,
                    ),
                    self.micro_batch_size,
                    self.num_workers,
                )
                for name, settings in self.stages.items()
            ]

    def _eval_sets(self) -> list[Dataset[Any]]:
        rows = HELD_OUT_FACTOR * self.micro_batch_size
        held_out = [HeldOutBatches(self.corpus, source, rows) for source in self.corpus.loaded]
        prompts = [
            Prompts(name, benchmark, self.corpus)
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
        return StepSize(
            samples=sum(len(refs) for refs in window),
            tokens=sum(bin_length(self.corpus, refs) for refs in window),
        )

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
        return [eval_loader(eval_set) for eval_set in self.eval_sets]

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
            "data.batch_size must be a multiple of data.micro_batch_size, "
            f"got {batch_size} and {micro_batch_size}."
        )
    return batch_size // micro_batch_size
