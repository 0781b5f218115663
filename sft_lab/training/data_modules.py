"""The Lightning data modules: one per stage, and the container that hands on the active one's."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from sft_lab.data.corpus import Corpus
from sft_lab.errors import RequestError
from sft_lab.evaluation.prompts import Prompts
from sft_lab.evaluation.suite import EvaluationSuite
from sft_lab.training.batches import (
    HeldOutBatches,
    MicroBatches,
    ResumableLoader,
    bin_length,
    eval_loader,
)
from sft_lab.training.guard import Guard, check_guard
from sft_lab.training.order import DataOrder, OrderName
from sft_lab.training.plan import StagePlan, Window
from sft_lab.training.replan import replan, split_passes
from sft_lab.training.schedule import Schedule, StepSize
from sft_lab.training.shares import ShareValue, parse_share, take
from sft_lab.training.stage import Stage, check_stages, plan, trains

HELD_OUT_FACTOR = 4
"""Training micro-batches that fit at once where nothing is kept for a backward pass."""


class StageDataModule(LightningDataModule):
    """The data of one stage; its loader gives the ``Batch`` of one pass.

    Args:
        corpus: The tokenised sources.
        plan: The stage's rows in order; may be replaced by one that begins alike.
        micro_batch_size: Training sequences per forward pass.
        num_workers: Loader processes.
        cuts: Optimizer steps of the stage behind which a pass is cut, so that another plan can
            take effect there: Lightning asks for batches at the start of a pass only.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: StagePlan,
        micro_batch_size: int,
        num_workers: int,
        cuts: range = range(0),
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.first_plan = self.plan = plan
        self.micro_batch_size = micro_batch_size
        self.num_workers = num_workers
        self.cuts = cuts
        self.pass_index = 0

    @property
    def passes(self) -> list[list[Window]]:
        """The windows of every pass, or of the parts into which passes are cut."""
        return split_passes(self.plan.passes, self.cuts)

    @override
    def train_dataloader(self) -> ResumableLoader:
        windows = self.passes[self.pass_index]
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
        order: ``even`` spreads every source evenly over each pass of a stage. ``random`` and
            ``length``, batches of similar length, do not; they are there for comparison. Or a
            ``DataOrder`` by ``class_path``.
        packing: Pack rows into training sequences of up to ``corpus.max_length`` tokens, instead of
            one sequence a row. Rows of a sequence do not see each other.
        k: The replay share of DMT, for stages to refer to as ``${data.k}``.
        seed: Seed of the order within stages.
        num_workers: Loader processes.
        guard: Steers the replay of a stage by what is measured in it.

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
        order: OrderName | DataOrder = "even",
        packing: bool = False,
        k: ShareValue | None = None,
        seed: int = 0,
        num_workers: int = 0,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        micro_batches_per_step(batch_size, micro_batch_size)
        if num_workers < 0:
            raise RequestError(f"data.num_workers must be 0 or more, got {num_workers}.")
        if k is not None:
            parse_share("data.k", k)
        check_stages(stages, corpus.sources)
        if guard is not None:
            check_guard(guard, stages, evaluation, order)
        self.corpus = corpus
        self.stages = stages
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.order = order
        self.packing = packing
        self.k = k
        self.seed = seed
        self.num_workers = num_workers
        self.guard = guard
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
        if self.guard is not None:
            mixed |= set(self.guard.sources(self.evaluation))
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
            if self.guard is not None:
                self._prepare_guard(self.guard)

    def _prepare_guard(self, guard: Guard) -> None:
        """Cut the guarded stage one step behind each evaluation, where what it decided can begin.

        Raises:
            RequestError: If nothing can be decided in the stage, or a share is no row.
        """
        every = self.evaluation.every_n_steps
        assert every is not None  # check_guard has looked
        index = list(self.stages).index(guard.stage)
        module = self.stage_modules[index]
        first_step = sum(before.plan.num_steps for before in self.stage_modules[:index])
        first_cut = every - first_step % every + 1
        if first_cut >= module.plan.num_steps:
            raise RequestError(
                f"data.guard: no evaluation lies far enough inside stage '{guard.stage}' to decide "
                f"anything: it is trained from step {first_step} to "
                f"{first_step + module.plan.num_steps}, and evaluation.every_n_steps is {every}; "
                "set it lower."
            )
        module.cuts = range(first_cut, sys.maxsize, every)
        for source in guard.sources(self.evaluation):
            for place, share in enumerate(guard.ladder):
                if share.amount and not self._replayed(guard, source, place):
                    raise RequestError(
                        f"data.guard.shares: {guard.shares[place]} of '{source}' is no row at all; "
                        "leave it out of the ladder."
                    )

    def _replayed(self, guard: Guard, source: str, place: int) -> list[int]:
        """Return the rows that a share of the ladder gives for a whole pass, in rank order."""
        loaded = self.corpus.loaded[source]
        return take(guard.ladder[place], loaded.trainable, loaded.num_tokens)

    def restore_plans(self, decisions: Sequence[tuple[int, Mapping[str, int]]]) -> None:
        """Plan the guarded stage as it stands behind decisions, whatever it has been until now.

        Args:
            decisions: Step and places of each, as for ``replan``, in order.
        """
        for module in self.stage_modules:
            module.plan = module.first_plan
        for step, places in decisions:
            self.replan(step, places)

    def replan(self, step: int, places: Mapping[str, int]) -> None:
        """Plan the guarded stage anew with other replay shares.

        Args:
            step: Optimizer steps of the run from which on it is so; a pass must be cut there.
            places: By source with a new share, the share's place on the ladder.
        """
        guard = self.guard
        if guard is None:
            raise RuntimeError("Only a guarded stage is planned anew.")
        index = list(self.stages).index(guard.stage)
        module = self.stage_modules[index]
        first_step = sum(before.plan.num_steps for before in self.stage_modules[:index])
        module.plan = replan(
            module.plan,
            step - first_step,
            {source: self._replayed(guard, source, place) for source, place in places.items()},
            steered=list(guard.sources(self.evaluation)),
            num_tokens={name: loaded.num_tokens for name, loaded in self.corpus.loaded.items()},
            batch_size=self.batch_size,
            seed=self.seed,
            packed_length=self.corpus.max_length if self.packing else None,
        )

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
