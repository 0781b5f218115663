"""A study as its config writes it: questions, their arms, and the cells that come of them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sft_lab.paths import find_config
from sft_lab.report.section import ReportSection

Scalar = int | float | str
Kind = Literal["single", "mixed", "ratio", "strategies", "grid"]


@dataclass(frozen=True)
class Axis:
    """Values that config keys take one after the other.

    Args:
        values: The values.
        keys: Dotted keys of a run's config, which all take the same value.
    """

    values: list[Scalar]
    keys: list[str]


@dataclass(frozen=True)
class Search:
    """Looks for the smallest value of an arm's axis that keeps abilities, instead of trying all.

    Args:
        axis: The axis, whose values ascend.
        retention: The least retention of each ability, in (0, 1], by metric key.
        confidence: How sure it must be, in (0.5, 1).
    """

    axis: str
    retention: dict[str, float]
    confidence: float = 0.9


@dataclass(frozen=True)
class Arm:
    """Runs of one strategy.

    Args:
        config: A strategy's file, by its name in the study's ``strategies``, or a path.
        also: Config files laid over it.
        set: Values by dotted key, as overrides; as text, as a command line holds them.
        grid: Axes by name; with several, every combination is a run.
        seeds: ``seed_everything`` of its runs; the question's where not given.
        search: Tries only the values of an axis that it needs.
    """

    config: str
    also: list[str] = field(default_factory=list)
    set: dict[str, str] = field(default_factory=dict)
    grid: dict[str, Axis] = field(default_factory=dict)
    seeds: list[int] | None = None
    search: Search | None = None


@dataclass(frozen=True)
class QuestionDesign:
    """One question.

    Args:
        title: One line.
        arms: What is compared, by name.
        design: How it is drawn and read, see ``study_results.Question``.
        seeds: Of its runs; the study's where not given.
    """

    title: str
    arms: dict[str, Arm]
    design: Kind = "grid"
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Resources:
    """What one run takes.

    Args:
        cpus: CPU cores, and threads that it computes with.
        gpus: GPUs; 0.5 lets two runs share one.
        memory_gb: Main memory in GB; not counted where not given.
    """

    cpus: int = 1
    gpus: float = 0
    memory_gb: float | None = None


@dataclass(frozen=True)
class ReportDesign:
    """A study's report.

    Args:
        sections: Sections of the user's own, shown before the one on methods.
    """

    sections: list[ReportSection] = field(default_factory=list)


@dataclass(frozen=True)
class StudyDesign:
    """A study.

    Args:
        name: Its name, under which it is found again.
        strategies: Folder of a base's strategies, such as ``configs/world``.
        questions: Questions by name.
        seeds: ``seed_everything`` of every run.
        fractions: Amounts that questions refer to as ``${fractions}``.
        shares: Replay shares that questions refer to as ``${shares}``.
        retention: Least retentions that questions refer to as ``${retention}``.
        set: Values by dotted key, of every run, as an arm's.
        resources: What one run takes.
        attempts: How often a run that crashes is begun or gone on with.
        report: What its report shows besides the sections that every report has.
    """

    name: str
    strategies: str
    questions: dict[str, QuestionDesign]
    seeds: list[int] = field(default_factory=lambda: [0])
    fractions: list[Scalar] = field(default_factory=list)
    shares: list[Scalar] = field(default_factory=list)
    retention: dict[str, float] = field(default_factory=dict)
    set: dict[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    attempts: int = 3
    report: ReportDesign = field(default_factory=ReportDesign)


STUDY_KEYS = tuple(StudyDesign.__dataclass_fields__)


@dataclass(frozen=True)
class CellSpec:
    """One run of a study: its place in the grid, and its config.

    Attributes:
        question: The question's name.
        arm: The arm's name.
        axis: Its values by axis name, as text.
        seed: ``seed_everything``.
        files: Its config files, in the order of merging.
        overrides: Values by dotted key, which win.
    """

    question: str
    arm: str
    axis: Mapping[str, str]
    seed: int
    files: tuple[str, ...]
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name, and that of the run in MLflow that it is the first to need.

        >>> CellSpec("rq4", "dmt", {"k": "1/64"}, 0, (), {}).name
        'rq4 dmt k=1/64 seed 0'
        """
        axis = [f"{name}={value}" for name, value in self.axis.items()]
        return " ".join([self.question, self.arm, *axis, f"seed {self.seed}"])


def cells(design: StudyDesign) -> list[CellSpec]:
    """Return every cell that is known beforehand: none of arms that search.

    Raises:
        RequestError: If there is no file of a strategy's name.
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
    """Return the cells of one arm: every combination of its axes' values, under every seed."""
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
