"""The Lightning data modules: one per stage, and the container that delegates to the active one."""

import logging
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le
from lightning import LightningDataModule
from typing_extensions import override

from sft_lab import distributed
from sft_lab.config.ranges import PositiveInt, Seed
from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.batches import (
    HeldOutBatches,
    MicroBatches,
    ResumableLoader,
    bin_length,
    check_shared_memory,
)
from sft_lab.training.guard import Guard, check_guard
from sft_lab.training.order import DataOrder, OrderName
from sft_lab.training.plan import StagePlan, Window
from sft_lab.training.replan import PlanChange, replan, split_passes
from sft_lab.training.schedule import Schedule, StepSize
from sft_lab.training.shares import Share, parse_share, take
from sft_lab.training.stage import Stage, check_stages, plan, trains

log = logging.getLogger(__name__)

HELD_OUT_FACTOR = 4
"""Training micro-batches that fit at once where nothing is kept for a backward pass."""


class StageDataModule(LightningDataModule):
    """The data of one stage; its loader gives the ``Batch`` of one pass.

    Args:
        corpus: The tokenised sources.
        plan: The stage's rows in order; a new plan may replace its rest.
        micro_batch_size: Training sequences per forward pass.
        num_workers: Loader processes.
        cuts: Optimizer steps of the stage after which a pass is cut, so that a changed plan can
            take effect there: Lightning asks for batches at the start of a pass only.
        padding_free: Whether the rows of a micro-batch lie end to end.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: StagePlan,
        micro_batch_size: int,
        num_workers: int,
        cuts: range = range(0),
        *,
        padding_free: bool = False,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.first_plan = self.plan = plan
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.cuts = cuts
        self.padding_free = padding_free
        self.pass_index = 0

    @property
    def passes(self) -> list[list[Window]]:
        """The windows of every pass, or of the parts into which passes are cut."""
        return split_passes(self.plan.passes, self.cuts)

    @override
    def train_dataloader(self) -> ResumableLoader:
        windows = self.passes[self.pass_index]
        dataset = MicroBatches(
            self.corpus,
            windows,
            self.micro_batch_size,
            distributed.rank(),
            distributed.world_size(),
            padding_free=self.padding_free,
        )
        return ResumableLoader(dataset, self.num_workers)


class StagedDataModule(LightningDataModule):
    """All stages of a run; the Trainer gets the batches of the active stage.

    Args:
        corpus: The sources; its own config group.
        evaluation: The benchmarks, whose items no training row may hold; its own config group.
        stages: Stages by name, in order.
        batch_size: Training sequences per optimizer step, over all devices.
        micro_batch_size: Training sequences per forward pass of a device; the gradient does not
            depend on it.
        order: ``even`` spreads every source evenly over each pass of a stage. ``random`` and
            ``length``, batches of similar length, do not; they are there for comparison. Or a
            ``DataOrder`` by ``class_path``.
        packing: Pack rows into training sequences of up to ``corpus.max_length`` tokens, instead of
            one sequence a row. Rows of a sequence do not see each other.
        padding_free: Lay the rows of a micro-batch end to end in sequences of similar length, which
            leaves little padding. A step has the same rows, and the same loss up to rounding; rows
            of a sequence do not see each other.
        k: The replay share of DMT, for stages to refer to as ``${data.k}``.
        seed: Seed of the order within stages.
        num_workers: Loader processes.
        guard: Adjusts the replay of a stage to the evaluations during it.

    Raises:
        RequestError: If the schedule cannot be right, whatever the data hold.
    """

    def __init__(
        self,
        corpus: Corpus,
        evaluation: EvaluationSuite,
        stages: dict[str, Stage],
        batch_size: PositiveInt = 8,
        micro_batch_size: PositiveInt = 8,
        order: OrderName | DataOrder = "even",
        packing: bool = False,
        padding_free: bool = False,
        k: Share | None = None,
        seed: Seed = 0,
        num_workers: Annotated[int, Ge(0), Le(512)] = 0,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        micro_batches_per_step(batch_size, micro_batch_size)
        if packing and padding_free:
            raise RequestError(
                "data.padding_free leaves nothing to save where data.packing fills the sequences; "
                "set one of them to false."
            )
        check_stages(stages, corpus.sources)
        if guard is not None:
            check_guard(guard, stages, evaluation, order)
        self.corpus = corpus
        self.stages = stages
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.order = order
        self.packing = packing
        self.padding_free = padding_free
        self.k = k
        self.seed = seed
        self.num_workers = num_workers
        self.guard = guard
        self.evaluation = evaluation
        self.stage_modules: list[StageDataModule] = []
        self.held_out: list[HeldOutBatches] = []
        self.active_index = 0

    @override
    def setup(self, stage: str) -> None:
        if self.num_workers:
            check_shared_memory()
        mixed = {
            source
            for source in self.corpus.sources
            if any(trains(settings, source) for settings in self.stages.values())
        }
        if self.guard is not None:
            mixed |= set(self.guard.sources(self.evaluation))
        items = {
            name: {item.id: benchmark.texts(item) for item in benchmark.all_items()}
            for name, benchmark in self.evaluation.benchmarks.items()
        }
        names = [name for name in self.corpus.sources if name in mixed or self.corpus.val_rows]
        self.corpus.load(names, items)
        self.evaluation.prompts(self.corpus.renderer)  # before anything is loaded
        if self.corpus.val_rows and not self.held_out:
            rows = HELD_OUT_FACTOR * self.micro_batch_size
            self.held_out = [HeldOutBatches(self.corpus, name, rows) for name in self.corpus.loaded]
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
                    padding_free=self.padding_free,
                )
                for name, settings in self.stages.items()
            ]
            for module in self.stage_modules:
                if (size := len(module.plan.passes[0][0])) < self.batch_size:
                    log.warning(
                        f"data.batch_size is {self.batch_size}, but a pass of stage "
                        f"'{module.plan.name}' has only {size} training sequences."
                    )
            if self.guard is not None:
                self.guard.prepare(self)

    @property
    def packed_by(self) -> str | None:
        """The key by which rows share a sequence; None where each has its own."""
        if self.packing:
            return "data.packing"
        return "data.padding_free" if self.padding_free else None

    def first_step(self, stage: str) -> int:
        """Return the optimizer steps of the run before a stage, as planned now."""
        index = list(self.stages).index(stage)
        return sum(module.plan.num_steps for module in self.stage_modules[:index])

    def module_of(self, stage: str) -> StageDataModule:
        """Return the data module of a stage."""
        return self.stage_modules[list(self.stages).index(stage)]

    def rows_of_share(self, source: str, share: Share) -> list[int]:
        """Return the rows that a share of a source gives for a whole pass, in rank order."""
        loaded = self.corpus.loaded[source]
        return take(share, loaded.trainable, loaded.num_tokens)

    def restore_plans(self, changes: Sequence[PlanChange]) -> None:
        """Apply changes to the first plans, whatever the plans have been until now.

        Args:
            changes: All changes of a run so far, in order.
        """
        for module in self.stage_modules:
            module.plan = module.first_plan
        for change in changes:
            self.replan(change)

    def replan(self, change: PlanChange) -> None:
        """Give the rest of a stage other shares of some sources; a pass must be cut there."""
        module = self.module_of(change.stage)
        module.plan = replan(
            module.plan,
            change.step - self.first_step(change.stage),
            {
                source: self.rows_of_share(source, parse_share(share))
                for source, share in change.shares.items()
            },
            steered=change.steered,
            num_tokens={name: loaded.num_tokens for name, loaded in self.corpus.loaded.items()},
            batch_size=self.batch_size,
            seed=self.seed,
            packed_length=self.corpus.max_length if self.packing else None,
        )

    @property
    def schedule(self) -> Schedule:
        """The schedule of the whole run, known after ``setup("fit")``."""
        return Schedule(
            [
                (
                    name,
                    settings,
                    [[self._window_size(window) for window in part] for part in module.passes],
                )
                for (name, settings), module in zip(
                    self.stages.items(), self.stage_modules, strict=True
                )
            ],
            {module.plan.name: module.plan.lengths for module in self.stage_modules},
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

    @property
    def active_settings(self) -> Stage:
        """The settings of the stage that is being trained."""
        return list(self.stages.values())[self.active_index]

    def activate(self, stage_index: int, pass_index: int) -> None:
        """Make one pass of one stage the source of the next batches."""
        self.active_index = stage_index
        self.active.pass_index = pass_index

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.active.train_dataloader()


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
