"""The schedule of a run as pure functions of step and pass: the stage, the learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from sft_lab.training.plan import PlanLengths
from sft_lab.training.stage import Stage


class StepSize(NamedTuple):
    """Rows and tokens of one optimizer step; prompts count, padding does not."""

    samples: int
    tokens: int


@dataclass(frozen=True)
class ScheduledStage:
    """One stage and its place in the run.

    Attributes:
        name: The stage's name.
        stage: Its settings.
        steps_per_pass: Optimizer steps of each pass over its mixture, or of the parts into which
            passes are cut.
        first_step: Optimizer steps of the run before it.
        first_pass: Passes of the run before it; Lightning calls them epochs.
        lengths: Empty while the stage follows its first plan.
    """

    name: str
    stage: Stage
    steps_per_pass: tuple[int, ...]
    first_step: int
    first_pass: int
    lengths: PlanLengths = ()

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return sum(self.steps_per_pass)

    @property
    def end_step(self) -> int:
        """Optimizer steps of the run when the stage has ended."""
        return self.first_step + self.num_steps


class Schedule:
    """The stages of a run in order.

    Args:
        stages: Name and settings of each stage, and the size of every step of every pass.
        lengths: By name, of stages that have been replanned.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Stage, Sequence[Sequence[StepSize]]]],
        lengths: Mapping[str, PlanLengths] | None = None,
    ) -> None:
        self.stages: list[ScheduledStage] = []
        first_step = first_pass = 0
        sizes: list[StepSize] = []
        for name, stage, passes in stages:
            scheduled = ScheduledStage(
                name,
                stage,
                tuple(len(steps) for steps in passes),
                first_step,
                first_pass,
                (lengths or {}).get(name, ()),
            )
            self.stages.append(scheduled)
            first_step = scheduled.end_step
            first_pass += len(passes)
            sizes += [size for steps in passes for size in steps]
        self.num_steps = first_step
        self.num_passes = first_pass
        self._samples = list(accumulate((size.samples for size in sizes), initial=0))
        self._tokens = list(accumulate((size.tokens for size in sizes), initial=0))

    def seen(self, step: int) -> StepSize:
        """Return the rows and tokens trained on after ``step`` optimizer steps."""
        return StepSize(self._samples[step], self._tokens[step])

    def stage_of_pass(self, pass_index: int) -> tuple[int, int]:
        """Return the stage of a pass of the run, and the index of the pass within it."""
        for index, scheduled in enumerate(self.stages):
            if pass_index < scheduled.first_pass + len(scheduled.steps_per_pass):
                return index, pass_index - scheduled.first_pass
        raise IndexError(f"pass {pass_index} comes after the last one, {self.num_passes - 1}")

    def stage_of_step(self, step: int) -> int:
        """Return the stage that trains step ``step``, from 0; the run's end belongs to the last."""
        for index, scheduled in enumerate(self.stages):
            if step < scheduled.end_step:
                return index
        return len(self.stages) - 1

    @property
    def boundaries(self) -> list[int]:
        """Optimizer steps at which a stage has ended, in order."""
        return [scheduled.end_step for scheduled in self.stages]

    def lr(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``, from 0 over the whole run."""
        scheduled = self.stages[self.stage_of_step(step)]
        lengths = scheduled.lengths or ((0, scheduled.num_steps),)
        position = schedule_position(lengths, step - scheduled.first_step)
        return stage_lr(scheduled.stage, position, lengths[0][1])


def schedule_position(lengths: PlanLengths, step: int) -> float:
    """Map a step to its position in the stage's original LR schedule.

    A new plan stretches or compresses the rest of the schedule to the steps that are left: the rate
    continues from its current value, and ends at its planned value.

    >>> [schedule_position(((0, 10), (4, 16)), step) for step in (3, 4, 6, 16)]
    [3.0, 4.0, 5.0, 10.0]

    Args:
        lengths: Every plan that the stage has had, the first from step 0.
        step: Optimizer step of the stage, from 0.

    Returns:
        A position from 0 to the steps of the first plan; with one plan, the step itself.
    """
    total = lengths[0][1]
    start, length = 0, total
    position = Fraction(0)
    for since, new_length in lengths:
        if since > step:
            break
        position += (total - position) * Fraction(since - start, max(1, length - start))
        start, length = since, new_length
    return float(position + (total - position) * Fraction(step - start, max(1, length - start)))


def stage_lr(stage: Stage, step: float, num_steps: int) -> float:
    """Return the rate of a stage's step: a linear warm-up, then the stage's schedule.

    Args:
        stage: Its settings.
        step: Optimizer step of the stage, from 0, or a position between two.
        num_steps: Optimizer steps of the stage.
    """
    # Through str: as a float, 0.07 of 100 steps is a little more than 7 and would round up to 8.
    warmup_steps = math.ceil(Fraction(str(stage.warmup_ratio)) * num_steps)
    if step < warmup_steps:
        return stage.lr * (min(step, warmup_steps - 1) + 1) / warmup_steps
    if stage.lr_schedule == "constant":
        return stage.lr
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    if stage.lr_schedule == "linear":
        return stage.lr * (1 - progress)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * progress))


def progress(schedule: Schedule, step: int) -> dict[str, float]:
    """Return the axes on which runs are compared, after ``step`` optimizer steps."""
    seen = schedule.seen(step)
    return {
        "progress/samples": float(seen.samples),
        "progress/tokens": float(seen.tokens),
        "progress/stage": float(schedule.stage_of_step(step)),
    }
