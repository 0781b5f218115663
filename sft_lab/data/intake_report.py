"""Report how many rows of a source were used, repaired and left out, and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sft_lab.data.sources import Source
from sft_lab.errors import RequestError
from sft_lab.terminal import counted

MAX_LISTED = 20  # contaminated rows that a report lists, and unused keys that a line names
_MAX_KEYS = 1000  # unused keys that are counted one by one; rows may have keys of their own
_MAX_KEY = 60  # characters of a key in a report
_OTHER_KEYS = "(other keys)"


@dataclass
class IntakeReport:
    """Counts of a source's rows: read, used after a repair, and left out.

    Attributes:
        rows: Rows read.
        dropped: Rows left out, by reason.
        repaired: Rows used after a repair, by repair; a row may have had several.
        examples: The place of the first row of each reason and repair.
        unusable: Dropped rows that cannot be used, by reason; the others were left out on request.
        split: Rows that were made besides: a template that rewrites earlier turns makes a row of
            every answer.
        duplicates: Rows with the same content as an earlier row, used or not.
        unused_keys: Rows that have something under a key that their format does not read, by key;
            keys of turns are written ``messages[].key``.
        contaminated: Rows that contain a benchmark's items, by benchmark.
        contaminated_rows: The first of them, each with its place, item and shared words.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)
    split: int = 0
    duplicates: int = 0
    unused_keys: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    contaminated_rows: list[str] = field(default_factory=list)

    def drop(self, reason: str, place: str, *, unusable: bool = False) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        if unusable:
            self.unusable[reason] += 1
        self.examples.setdefault(reason, place)

    def repair(self, repair: str, place: str) -> None:
        """Count a repair of a row that is used."""
        self.repaired[repair] += 1
        self.examples.setdefault(repair, place)

    def count_unused(self, keys: Iterable[str]) -> None:
        """Count a row that has something under keys that are not read."""
        for key in keys:
            named = key[:_MAX_KEY].encode("utf-8", "replace").decode()
            is_counted = named in self.unused_keys or len(self.unused_keys) < _MAX_KEYS
            self.unused_keys[named if is_counted else _OTHER_KEYS] += 1

    @property
    def lines(self) -> list[str]:
        """Return the findings as text, a line each."""
        found = []
        if self.dropped:
            total = f"{self.dropped.total()} of {counted(self.rows, 'row')}"
            found.append(f"{total} left out: {_listed(self.dropped)}")
        if self.repaired:
            found.append(f"repaired: {_listed(self.repaired)}")
        if self.duplicates:
            found.append(f"{counted(self.duplicates, 'row repeats', 'rows repeat')} another row")
        for benchmark, count in self.contaminated.items():
            rows = counted(count, "row contains", "rows contain")
            found.append(f"{rows} an item of {benchmark}, or 13 words of one")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        # dataclasses.asdict would count the pairs of a Counter instead of copying it.
        return {
            f.name: dict(value) if isinstance(value := getattr(self, f.name), Counter) else value
            for f in fields(self)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "IntakeReport":
        """Return the report that ``to_json`` wrote."""
        keys = ("dropped", "repaired", "unusable", "unused_keys", "contaminated")
        counters = {key: Counter(values[key]) for key in keys}
        return cls(**{**values, **counters})


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def unused_line(unused_keys: Mapping[str, int]) -> str:
    """Return unused keys, those of most rows first, as a line; empty if there are none."""
    most = Counter(unused_keys).most_common(MAX_LISTED)
    named = [f"{key} ({counted(count, 'row')})" for key, count in most]
    if more := len(unused_keys) - len(most):
        named.append(f"and {more:,} more")
    return f"keys not used: {', '.join(named)}" if named else ""


def check_dropped(name: str, source: Source, report: IntakeReport) -> None:
    """Refuse a source if too many of its rows cannot be used.

    Raises:
        RequestError: If they are more than ``max_dropped`` of all rows.
    """
    unusable = report.unusable.total()
    if unusable > source.max_dropped * report.rows:
        reason = next(iter(report.unusable))
        raise RequestError(
            f"corpus.sources.{name}: {unusable} of {counted(report.rows, 'row')} cannot be used, "
            f"e.g. {source.path}, {report.examples[reason]}: {reason}. "
            f"Fix them, or raise corpus.sources.{name}.max_dropped from {source.max_dropped}."
        )
