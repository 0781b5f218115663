"""The claims of the paper, read from ``claims.yaml``, and their findings in a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.verdicts import Direction
from sft_lab.report.page import Claim, Finding


@dataclass(frozen=True)
class Expected:
    """The paper's claim about one ability.

    Attributes:
        direction: What it says of the second side of a comparison.
        figures: Its figures.
    """

    direction: Direction
    figures: str


@dataclass(frozen=True)
class PaperClaim:
    """A claim of the paper.

    Attributes:
        text: The claim in a few words.
        where: The section and table that make it.
        abilities: By the source that teaches the ability.
        quote: The paper's words; empty where only a table makes the claim.
    """

    text: str
    where: str
    abilities: Mapping[str, Expected]
    quote: str = ""

    def expected(self, abilities: Sequence[Ability]) -> list[tuple[Ability, Expected]]:
        """Return the abilities that the paper claims something of, with the claim on each."""
        known = self.abilities
        return [(a, known[a.source]) for a in abilities if a.source and a.source in known]

    def judged(self, question: str, findings: Sequence[Finding]) -> Claim:
        """Return the claim with its findings."""
        words = f"\N{LEFT DOUBLE QUOTATION MARK}{self.quote}\N{RIGHT DOUBLE QUOTATION MARK}"
        paper = f"{words} ({self.where})." if self.quote else f"{self.where}."
        return Claim(question, self.text, paper, findings)


@cache
def paper_claims() -> Mapping[str, PaperClaim]:
    """Return the claims by name."""
    text = (resources.files("sft_lab.report.paper") / "claims.yaml").read_text(encoding="utf-8")
    return {
        name: PaperClaim(
            text=claim["text"],
            where=claim["where"],
            quote=claim.get("quote", ""),
            abilities={source: Expected(**of) for source, of in claim["abilities"].items()},
        )
        for name, claim in yaml.safe_load(text).items()
    }
