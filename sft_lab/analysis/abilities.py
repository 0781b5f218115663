"""Abilities and their text form: shares in percent, ratings of MT-Bench as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft_lab.analysis.study_results import Cell, StudyResults
from sft_lab.runs.results import RunResult


@dataclass(frozen=True)
class Ability:
    """An ability, as one score of a benchmark measures it.

    Attributes:
        name: Its source's name, or the benchmark's if the source has another one.
        key: Metric key of its score.
        scale: Least and greatest value of the score.
        source: The source that teaches it, or None.
    """

    name: str
    key: str
    scale: tuple[float, float] = (0.0, 1.0)
    source: str | None = None

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.key.split("/", 1)[0]

    @property
    def score_name(self) -> str:
        """The score's name within the benchmark."""
        return self.key.split("/", 1)[1]

    @property
    def is_share(self) -> bool:
        """Whether the score is in [0, 1], shown in percent."""
        return self.scale == (0.0, 1.0)

    @property
    def unit(self) -> str:
        """The unit of its values as text."""
        return "%" if self.is_share else f"{self.scale[0]:g} to {self.scale[1]:g}"

    def shown(self, value: float) -> float:
        """Return a score as it is shown: 0 to 100 for a share."""
        return 100 * value if self.is_share else value

    def text(self, value: float) -> str:
        """Return a score as text.

        >>> Ability("math", "gsm8k/strict").text(0.4753)
        '47.5'
        """
        return f"{self.shown(value):.{1 if self.is_share else 2}f}"

    def change(self, value: float) -> str:
        """Return a difference as text with its sign.

        >>> Ability("general", "mt_bench/mean", (1.0, 10.0)).change(-0.12)
        '\N{MINUS SIGN}0.12'
        """
        text = self.text(abs(value))
        if float(text) == 0:
            return text
        return f"{'+' if value > 0 else chr(0x2212)}{text}"


GENERAL = "general"
"""The source of the general ability; those of the other sources are special abilities."""


def general_of(abilities: Sequence[Ability]) -> list[Ability]:
    """Return the abilities of the general source; several benchmarks may measure it."""
    return [ability for ability in abilities if ability.source == GENERAL]


def special_of(abilities: Sequence[Ability]) -> list[Ability]:
    """Return the abilities of the other sources, without those that have no source."""
    return [ability for ability in abilities if ability.source not in (None, GENERAL)]


def taught(abilities: Sequence[Ability]) -> list[Ability]:
    """Return the abilities whose source is known."""
    return [ability for ability in abilities if ability.source is not None]


def abilities_of(results: StudyResults) -> list[Ability]:
    """Return a study's abilities in its order, with the scales recorded in its runs."""
    cells = [cell for question in results.questions for cell in question.cells]
    return [
        Ability(name, key, _scale(cells, key), results.sources.get(name))
        for name, key in results.abilities.items()
    ]


def abilities_in(run: RunResult) -> list[Ability]:
    """Return what a run measures by the main score of each benchmark.

    Abilities that the run follows have their own names, others that of their benchmark.
    """
    names = {key: name for name, key in run.record.abilities.items()}
    return [
        Ability(names.get(key, name), key, run.benchmarks[name].scale, run.benchmarks[name].source)
        for name, key in run.score_keys.items()
    ]


def _scale(cells: Sequence[Cell], key: str) -> tuple[float, float]:
    benchmark = key.split("/", 1)[0]
    for cell in cells:
        if cell.result and benchmark in cell.result.benchmarks:
            return cell.result.benchmarks[benchmark].scale
    return 0.0, 1.0
