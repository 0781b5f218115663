"""The paper's published scores, shown next to ours if the base is a LLaMA."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.groups import amount
from sft_lab.metrics.score import Score
from sft_lab.report.curves import Line
from sft_lab.report.departures import Departure, differs

_ORDER = ("gsm8k", "humaneval", "mt_bench")
SOURCE = "Dong et al. (2024), arXiv 2310.05492, LLaMA-1, one run a cell"


class Published:
    """The paper's scores of one model size.

    Args:
        size: ``7b``, ``13b`` or ``33b``.
        departures: Where the study's protocol differs from the paper's.
    """

    def __init__(self, size: str, departures: Sequence[Departure] = ()) -> None:
        self.size = size
        self.departures = departures
        self._scores: Mapping[str, Any] = _file()[size]

    @property
    def label(self) -> str:
        """The name of a column or line of published scores."""
        under = ", another protocol" if self.departures else ""
        return f"the paper, {self.size.upper()}{under}"

    @property
    def source(self) -> str:
        """The source of the scores, and in what this study's protocol differs."""
        if not self.departures:
            return f"Published: {SOURCE}, under this protocol."
        return f"Published: {SOURCE}. {differs(self.departures)}"

    def strategy(self, ability: Ability, arm: str, level: str) -> str:
        """Return Table 1's score of a strategy as text; empty if it has none."""
        row = arm.removesuffix("_only")
        if row == "dmt":
            return self._text(ability, self._at("k", level))
        return self._text(ability, self._scores["strategies"].get(row))

    def line(self, ability: Ability, *names: str) -> Line | None:
        """Return the line of a sweep, such as ``single`` or ``ratio``, ``general``."""
        sweep: Any = self._scores
        for name in names:
            sweep = sweep.get(name, {})
        if not sweep or ability.benchmark not in _ORDER:
            return None
        column, scale = _ORDER.index(ability.benchmark), 100 if ability.is_share else 1
        values = [scores[column] / scale for scores in sweep.values()]
        return Line(
            self.label,
            [str(level) for level in sweep],
            [Score(value, value, value, 1) for value in values],
            published=True,
        )

    def _at(self, sweep: str, level: str) -> Sequence[float] | None:
        for name, scores in self._scores.get(sweep, {}).items():
            if amount(str(name)) == amount(level):
                found: Sequence[float] = scores
                return found
        return None

    def _text(self, ability: Ability, scores: Sequence[float] | None) -> str:
        if scores is None or ability.benchmark not in _ORDER:
            return ""
        return f"{scores[_ORDER.index(ability.benchmark)]:.2f}"


def published_for(bases: Sequence[str], departures: Sequence[Departure] = ()) -> Published | None:
    """Return the paper's scores of the size that a LLaMA base names, 7B if it names none.

    Args:
        bases: The bases of the study's runs; None is returned if none of them is a LLaMA.
        departures: Where the study's protocol differs from the paper's.
    """
    llamas = [base for base in bases if "llama" in base.lower()]
    if not llamas:
        return None
    size = re.search(r"(7|13|33|30)b", llamas[0].lower())
    return Published("33b" if size and size[1] == "30" else size[0] if size else "7b", departures)


@cache
def _file() -> Mapping[str, Any]:
    text = (resources.files("sft_lab.report") / "published.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found
