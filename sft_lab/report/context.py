"""The context that sections of a report are built from, and the parts that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.forgetting import Changed
from sft_lab.analysis.groups import RunGroup, groups_of
from sft_lab.analysis.measurements import Comparison, Measurements, end_of
from sft_lab.analysis.study_results import Question, StudyResults
from sft_lab.report.answers import claims_answer
from sft_lab.report.curves import Level, Line, curve, top_of
from sft_lab.report.departures import Departure
from sft_lab.report.page import Claim, Figure, Panel, Section, Table, slug
from sft_lab.report.published import Published

BANDS = (
    "Dots are seeds, bands 95 % intervals over seeds and items; the amounts are on a logarithmic "
    "axis."
)

_NOTHING = 0.0005  # 0.0 % as text


@dataclass
class Context:
    """Everything that sections are built from, and what they have built so far.

    Attributes:
        results: The study.
        abilities: Its abilities.
        measured: Means, comparisons and items.
        published: The paper's scores, or None.
        changed: By ability, the items that changed in the run that forgot most of it.
        departures: Where the study's protocol differs from the paper's.
        comparisons: Every comparison so far, for ``comparisons.csv``.
        sections: Every section so far.
    """

    results: StudyResults
    abilities: Sequence[Ability]
    measured: Measurements
    published: Published | None
    changed: Changed
    departures: Sequence[Departure] = ()
    comparisons: list[Comparison] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    @property
    def draws(self) -> bool:
        """Return whether figures are drawn: not while tests are only collected."""
        return self.measured.family.is_closed

    @property
    def claims(self) -> list[Claim]:
        """All claims of the sections so far, in order."""
        return [claim for section in self.sections for claim in section.claims]

    def line(
        self,
        label: str,
        ability: Ability,
        groups: Sequence[RunGroup],
        levels: Sequence[str] | None = None,
    ) -> Line:
        """Return the line of groups that have been measured, at their levels or at those given."""
        levels = [group.level for group in groups] if levels is None else levels
        sides = [end_of(group).having(ability) for group in groups]
        found = [
            (level, score, [point.scores[ability.key].value for _, point in side.points.values()])
            for level, side in zip(levels, sides, strict=True)
            if (score := self.measured.mean(ability, side)) is not None
        ]
        known, scores, seeds = zip(*found, strict=True) if found else ((), (), ())
        return Line(label, known, scores, seeds)

    def paper(self, ability: Ability, *names: str) -> list[Line]:
        """Return the paper's line of a sweep, where it is shown and there is one."""
        line = self.published.line(ability, *names) if self.published else None
        return [line] if line else []


def ability_curves(
    question: Question,
    context: Context,
    title: str,
    caption: str,
    lines: Callable[[Ability], Sequence[Line]],
    levels: Callable[[Ability], Sequence[Level]] = lambda ability: (),
    name: str = "curve",
    axis: str | None = None,
) -> list[Figure]:
    """Return a figure with a panel of lines for each ability, all shares on one vertical range.

    Args:
        question: Names the drawings and, where ``axis`` does not, the horizontal axis.
        context: The study.
        title: The figure's heading.
        caption: What it shows.
        lines: Lines of an ability.
        levels: Horizontal lines of an ability.
        name: Distinguishes the question's figures.
        axis: Name of the horizontal axis.
    """
    if not context.draws:
        return []
    groups = [group for group in groups_of(question) if group.axis]
    axis = axis or (next(iter(groups[0].axis)) if groups else "amount")
    of = {ability: lines(ability) for ability in context.abilities}
    flat = [a.name for a in context.abilities if _is_flat(a, of[a])]
    of = {ability: some for ability, some in of.items() if ability.name not in flat}
    if flat:
        caption += f" Left out, 0 % throughout: {', '.join(flat)}."
    shares = [a for a in of if a.is_share]
    tops = {a: top_of(a, of[a], levels(a)) for a in of}
    common = max((tops[a] for a in shares), default=1.0)
    panels = [
        curve(
            f"{question.name}-{name}-{ability.name}",
            ability.name,
            ability,
            axis,
            of[ability],
            levels(ability),
            common if ability.is_share else tops[ability],
        )
        for ability in of
    ]
    if any(line.published for some in of.values() for line in some):
        caption += " Grey crosses are the scores of the same design in the paper."
        caption += f" {context.published.source}" if context.published else ""
    return figure_of(title, caption, panels)


def _is_flat(ability: Ability, lines: Sequence[Line]) -> bool:
    """Return whether a panel would show nothing but zeros."""
    values = [score.value for line in lines for score in line.scores if not line.published]
    return ability.is_share and bool(values) and max(values) < _NOTHING


def figure_of(title: str, caption: str, panels: Sequence[Panel | None]) -> list[Figure]:
    """Return the figure of those panels that could be drawn, if any."""
    found = [panel for panel in panels if panel is not None]
    return [Figure(title, caption, found)] if found else []


def section_of(
    question: Question,
    claims: Sequence[Claim] = (),
    tables: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
    answer: str = "",
) -> Section:
    """Return the section of a question, without tables that are empty.

    Its answer is by default the sentence on its most telling claim.
    """
    return Section(
        slug(question.name),
        f"{question.name}: {question.title}",
        claims=claims,
        tables=[t for t in tables if t.rows],
        figures=list(figures),
        answer=answer or claims_answer(claims),
    )
