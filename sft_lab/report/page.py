"""The parts of a report, before it is written as HTML, Markdown and CSV."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal
from urllib.parse import quote

from sft_lab.analysis.verdicts import Verdict

Mark = Literal["", "less", "more", "unclear", "best"]
_SIGNS = {
    "less": "\N{BLACK DOWN-POINTING TRIANGLE}",
    "more": "\N{BLACK UP-POINTING TRIANGLE}",
    "unclear": "\N{WHITE CIRCLE}",
}


def slug(name: str) -> str:
    """Return a name for a file or an anchor; names that differ stay different.

    >>> slug("rq1-curve-math/easy")
    'rq1-curve-math-2Feasy'
    """
    return quote(name, safe="").replace("%", "-").replace("~", "-")


VERDICT_SIGNS: Mapping[Verdict, str] = {
    "supported": "\N{CHECK MARK}",
    "not supported": "\N{MULTIPLICATION SIGN}",
    "inconclusive": "?",
    "one seed only": "1",
    "not controlled": "\N{WHITE CIRCLE}",
    "not tested": "\N{EN DASH}",
}


@dataclass(frozen=True)
class TableCell:
    """One cell of a table.

    Attributes:
        text: Its text.
        note: A second, smaller line.
        mark: ``less`` or ``more`` if it differs from its reference, ``unclear`` if that may be
            chance, ``best`` for the reference itself; empty if nothing is compared.
    """

    text: str
    note: str = ""
    mark: Mark = ""

    @property
    def sign(self) -> str:
        """The sign of its mark; empty without a mark, and for the reference, which is bold."""
        return _SIGNS.get(self.mark, "")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: Its content, in words.
        header: Names of its columns; the first column names the rows.
        rows: Its rows.
        long_text: Whether cells hold whole answers, whose lines are kept and wrapped.
        folded: Whether a page shows only its caption until a reader opens it.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[TableCell | str]]
    long_text: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure.

    Attributes:
        name: Name of its file, without ``.svg``.
        draw: Returns the ``<svg>`` element; called once, when the report is written.
        alt: Its content, in words.
    """

    name: str
    draw: Callable[[], str]
    alt: str

    @cached_property
    def svg(self) -> str:
        """The ``<svg>`` element."""
        return self.draw()


@dataclass(frozen=True)
class Figure:
    """Drawings side by side under one caption.

    Attributes:
        title: Its heading.
        caption: Its content and how to read it.
        panels: Its drawings.
    """

    title: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Evidence:
    """The figures of a finding that a summary names.

    Attributes:
        change: The difference with its unit.
        controlled: The difference from the control; empty without one.
        control: The kind of the control, or that none is needed or there.
        seeds: The fewest and the most seeds of a side.
        items: Items that were compared.
    """

    change: str
    controlled: str
    control: str
    seeds: tuple[int, int]
    items: int


@dataclass(frozen=True)
class Finding:
    """The evidence on one claim about one ability.

    Attributes:
        ability: The ability's name.
        verdict: Whether the study supports the claim.
        sentence: The sentence with its figures.
        claimed: What is claimed of this ability, with the paper's figures.
        evidence: The figures for a summary; None if nothing was compared.
    """

    ability: str
    verdict: Verdict
    sentence: str
    claimed: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Claim:
    """A claim and the evidence on it.

    Attributes:
        question: The question's name.
        text: The claim in a few words.
        paper: The paper's own words, with their place.
        findings: The evidence, ability by ability.
    """

    question: str
    text: str
    paper: str
    findings: Sequence[Finding]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return f"{slug(self.question)}-claim-{slug('-'.join(self.text.lower().split()))}"


@dataclass(frozen=True)
class Section:
    """A part of a report under one heading.

    Attributes:
        name: Its anchor.
        title: Its heading.
        text: Paragraphs before everything else.
        claims: Its claims, with the evidence on each.
        tables: Its tables.
        figures: Its figures; the first answers its question best.
        answer: The sentence that answers the section's question; empty where it asks none.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    answer: str = ""


@dataclass(frozen=True)
class PlainTable:
    """Rows of a CSV file.

    Attributes:
        columns: Its columns in order.
        rows: Its rows by column; missing values are left empty.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Judged:
    """A verdict in the strip of verdicts.

    Attributes:
        verdict: The verdict.
        text: The claim.
        anchor: Where the evidence is.
    """

    verdict: Verdict
    text: str
    anchor: str

    @property
    def sign(self) -> str:
        """The sign of its verdict."""
        return VERDICT_SIGNS[self.verdict]


Verdicts = Mapping[str, Mapping[str, Sequence[Judged]]]
"""The verdicts on all findings, by ability and then by question."""


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: Its title.
        extent: Cells, seeds and base in a line.
        facts: The object of the study, by name of the fact.
        warnings: What to keep in mind when reading it.
        sections: Its parts; those with an answer open it.
        verdicts: The verdicts on all findings, a row for each ability and a column a question.
        counts: How many findings have which verdict, in a sentence.
        headline: The figure on its first screen, which is in no section; None without figures.
        tables: The same as plain data, by name of a CSV file.
    """

    title: str
    extent: str
    facts: Mapping[str, str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    verdicts: Verdicts = field(default_factory=dict)
    counts: str = ""
    headline: Figure | None = None
    tables: Mapping[str, PlainTable] = field(default_factory=dict)

    @property
    def figures(self) -> list[Figure]:
        """All figures, the one on the first screen first."""
        others = [figure for section in self.sections for figure in section.figures]
        return [self.headline, *others] if self.headline else others

    @property
    def claims(self) -> list[Claim]:
        """All claims, in order."""
        return [claim for section in self.sections for claim in section.claims]
