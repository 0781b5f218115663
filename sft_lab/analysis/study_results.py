"""The cells of a study with their runs: all that its report is built from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_lab.metrics.equivalence import MARGIN
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class Cell:
    """One run of a question's grid.

    Attributes:
        question: The question's name, such as ``rq1``.
        arm: The arm's name, such as ``math`` (alone) or ``sequential``.
        axis: The grid's values of this cell by axis name, as the config writes them, such as
            ``{"fraction": "1/64"}`` or ``{"k": "0"}``; empty for an arm without a grid.
        seed: ``seed_everything``.
        result: The run; None if it has not finished or has failed.
        control: The control that this cell is, of the cell with its arm and axis; empty for a cell
            of the question itself.
        alone: The source that the control trains alone; empty if it trains the same sources.
    """

    question: str
    arm: str
    axis: Mapping[str, str]
    seed: int
    result: RunResult | None
    control: str = ""
    alone: str = ""


@dataclass(frozen=True)
class Question:
    """One question of a study.

    Attributes:
        name: Its name.
        title: One line.
        design: How its cells are drawn and read: ``single`` (one source by
            amount, an arm a source), ``mixed`` (all sources by amount), ``ratio`` (arms are the
            paper's three designs), ``strategies`` (arms are strategies; ``dmt`` has an axis ``k``),
            or ``grid`` for anything else.
        cells: Its cells.
    """

    name: str
    title: str
    design: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class SearchResult:
    """The result of an arm that searches.

    Attributes:
        question: The question's name.
        arm: The arm's name.
        axis: The axis that it searched.
        retention: The least retention asked for, by metric key.
        confidence: How sure it had to be, one-sided.
        value: The smallest value that was shown to keep every ability; None if there was none.
        retained: Whether each value that was tried keeps them, in order of trial.
        trials: Runs that were trained.
        grid: Runs of the whole grid.
        seeds: Number of seeds; with one, the result holds over items only.
    """

    question: str
    arm: str
    axis: str
    retention: Mapping[str, float]
    confidence: float
    value: str | None
    retained: Mapping[str, str]
    trials: int
    grid: int
    seeds: int


@dataclass(frozen=True)
class StudyResults:
    """A whole study.

    Attributes:
        name: Its name.
        abilities: Metric key of the first score of each benchmark, in the order of the config, by
            its ability's name, e.g. ``{"math": "world_math/format_free"}``.
        sources: The source that teaches each ability, by the ability's name, if one is
            known.
        questions: Its questions, in order.
        searches: The results of its searches.
        margin: The least difference that matters, as a part of a score's scale.
    """

    name: str
    abilities: Mapping[str, str]
    sources: Mapping[str, str]
    questions: Sequence[Question]
    searches: Sequence[SearchResult] = ()
    margin: float = MARGIN
