"""The cells of a study with the runs that filled them: all that its report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        result: The run; None while it has not finished, or where it has failed.
    """

    question: str
    arm: str
    axis: Mapping[str, str]
    seed: int
    result: RunResult | None


@dataclass(frozen=True)
class Question:
    """One question of a study.

    Attributes:
        name: Its name.
        title: One line.
        design: What its cells are, and thereby how it is drawn and read: ``single`` (one source by
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
    """What an arm that searches has come to.

    Attributes:
        question: The question's name.
        arm: The arm's name.
        axis: The axis that it searched.
        retention: The least retention asked for, by metric key.
        confidence: How sure it had to be, one-sided.
        value: The smallest value that was shown to keep every ability; None where none was.
        verdicts: What was found of each value that was tried, in order of trial.
        trials: Runs that it took.
        grid: Runs that the whole grid would have taken.
        seeds: Seeds that it had; of one, it holds over items only. None in a record of an earlier
            version.
    """

    question: str
    arm: str
    axis: str
    retention: Mapping[str, float]
    confidence: float
    value: str | None
    verdicts: Mapping[str, str]
    trials: int
    grid: int
    seeds: int | None = None


@dataclass(frozen=True)
class StudyResults:
    """A whole study.

    Attributes:
        name: Its name.
        abilities: Metric key of the first score of each benchmark, in the order of the config, by
            its ability's name, e.g. ``{"math": "world_math/accuracy"}``.
        sources: The source that teaches each ability, by the ability's name; an ability of which
            none is known is left out.
        questions: Its questions, in order.
        searches: What its searches have come to.
    """

    name: str
    abilities: Mapping[str, str]
    sources: Mapping[str, str]
    questions: Sequence[Question]
    searches: Sequence[SearchResult] = ()
