"""Define a study: its questions, their arms, and the cells that these expand to."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from sft_lab.analysis.controls import Control
from sft_lab.config.ranges import (
    AnyYaml,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Seed,
)
from sft_lab.metrics.equivalence import MARGIN
from sft_lab.paths import find_config
from sft_lab.report.section import ReportSection

Scalar = int | float | str
Kind = Literal["single", "mixed", "ratio", "strategies", "grid"]


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid: values that config keys take in turn.

    Args:
        values: The values.
        keys: Dotted keys of a run's config; all are set to the same value.
    """

    values: list[Scalar]
    keys: list[str]


@dataclass(frozen=True)
class Search:
    """Search for the smallest value of an arm's axis that keeps abilities, instead of trying all.

    Args:
        axis: The axis to search; its values must ascend.
        retention: Minimum retention of each ability, in (0, 1], by metric key.
        confidence: Required confidence, in (0.5, 1).
    """

    axis: str
    retention: dict[str, PositiveShare]
    confidence: Annotated[float, Gt(0.5), Lt(1)] = 0.9


@dataclass(frozen=True)
class Arm:
    """Runs of one strategy.

    Args:
        config: The strategy's file: a name in the study's ``strategies`` folder, or a path.
        also: Config files merged over it.
        set: Overrides by dotted key, as text, the way a command line holds them.
        grid: Axes by name; with several, every combination is a run.
        seeds: ``seed_everything`` of its runs; default: the question's.
        search: Run only the values of an axis that a search needs.
    """

    config: str
    also: list[str] = field(default_factory=list)
    set: dict[str, AnyYaml] = field(default_factory=dict)
    grid: dict[str, Axis] = field(default_factory=dict)
    seeds: list[Seed] | None = None
    search: Search | None = None


@dataclass(frozen=True)
class QuestionDesign:
    """One question of a study.

    Args:
        title: One line.
        arms: Arms to compare, by name.
        design: How the report draws and interprets it, see ``study_results.Question``.
        seeds: ``seed_everything`` of its runs; default: the study's.
        controls: Further arms that leave one explanation of a finding, made from its arms.
    """

    title: str
    arms: dict[str, Arm]
    design: Kind = "grid"
    seeds: list[Seed] | None = None
    controls: list[Control] = field(default_factory=list)


@dataclass(frozen=True)
class Resources:
    """Resources that one run needs.

    Args:
        cpus: CPU cores, and the number of threads it computes with; its processes share them.
        gpus: GPUs, as many as its ``trainer.devices``; 0.5 lets two runs share one.
        memory_gb: Main memory in GB; null reserves none.
    """

    cpus: PositiveInt = 1
    gpus: NonNegativeFloat = 0
    memory_gb: PositiveFloat | None = None


@dataclass(frozen=True)
class ReportDesign:
    """A study's report.

    Args:
        margin: Least difference that matters, as a part of a score's scale: what "no effect" rules
            out.
        sections: The user's own sections, shown before the one on methods.
    """

    margin: PositiveShare = MARGIN
    sections: list[ReportSection] = field(default_factory=list)


@dataclass(frozen=True)
class StudyDesign:
    """A study.

    Args:
        name: The study's name; ``report`` finds it by this name.
        strategies: Folder of a base's strategies, such as ``configs/world``.
        questions: Questions by name.
        seeds: ``seed_everything`` of every run.
        fractions: Amounts that questions refer to as ``${fractions}``.
        shares: Replay shares that questions refer to as ``${shares}``.
        retention: Minimum retentions that questions refer to as ``${retention}``.
        set: Overrides by dotted key, for every run; an arm's win.
        resources: Resources that one run needs.
        attempts: How many times to start or resume a run that crashes.
        report: Sections that the report shows in addition to the standard ones.
    """

    name: str
    strategies: str
    questions: dict[str, QuestionDesign]
    seeds: list[Seed] = field(default_factory=lambda: [0])
    fractions: list[Scalar] = field(default_factory=list)
    shares: list[Scalar] = field(default_factory=list)
    retention: dict[str, PositiveShare] = field(default_factory=dict)
    set: dict[str, AnyYaml] = field(default_factory=dict)
    resources: Resources = Resources()
    attempts: PositiveInt = 3
    report: ReportDesign = field(default_factory=ReportDesign)


STUDY_KEYS = tuple(StudyDesign.__dataclass_fields__)


@dataclass(frozen=True)
class CellSpec:
    """One cell of a study: its place in the grid, and its config.

    Attributes:
        question: The question's name.
        arm: The arm's name.
        axis: Its values by axis name, as text.
        seed: ``seed_everything``.
        files: Its config files, in the order of merging.
        overrides: Values by dotted key, merged last.
        control: The control that it is, of the cell with its arm, axis and seed; else empty.
        alone: The source that the control trains alone, if it does.
        stage_order: The order of its stages; empty for that of its files.
    """

    question: str
    arm: str
    axis: Mapping[str, str]
    seed: int
    files: tuple[str, ...]
    overrides: Mapping[str, Any]
    control: str = ""
    alone: str = ""
    stage_order: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The cell's name, and the MLflow name of the run, if this is the run's first cell.

        >>> CellSpec("rq4", "dmt", {"k": "1/64"}, 0, (), {}).name
        'rq4 dmt k=1/64 seed 0'
        """
        axis = [f"{name}={value}" for name, value in self.axis.items()]
        control = [part for part in (self.control, self.alone) if part]
        return " ".join([self.question, self.arm, *axis, *control, f"seed {self.seed}"])


def cells(design: StudyDesign) -> list[CellSpec]:
    """Return every cell that is known in advance, so none of arms that search.

    Raises:
        RequestError: If a strategy's file does not exist.
    """
    return [
        cell
        for name, question in design.questions.items()
        for arm_name, arm in question.arms.items()
        if arm.search is None
        for cell in arm_cells(design, name, arm_name, arm, question.seeds)
    ]


def arm_cells(
    design: StudyDesign,
    question: str,
    arm_name: str,
    arm: Arm,
    seeds: Sequence[int] | None = None,
) -> list[CellSpec]:
    """Return the cells of one arm: every combination of its axes' values, with every seed."""
    files = [_file(design, file) for file in (arm.config, *arm.also)]
    fixed = {**design.set, **arm.set}
    found: list[CellSpec] = []
    for values in itertools.product(*(axis.values for axis in arm.grid.values())):
        axis = dict(zip(arm.grid, map(str, values), strict=True))
        gridded = {
            key: value
            for (_, settings), value in zip(arm.grid.items(), values, strict=True)
            for key in settings.keys
        }
        for seed in arm.seeds or seeds or design.seeds:
            overrides = {**fixed, **gridded, "seed_everything": seed}
            found.append(CellSpec(question, arm_name, axis, seed, tuple(files), overrides))
    return found


def _file(design: StudyDesign, name: str) -> str:
    path = name if "/" in name else f"{design.strategies}/{name}"
    find_config(path)
    return path
