"""Intake: the rows of a source become samples, filtered and cleaned, each row accounted for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sft_lab.data.cleaning import clean
from sft_lab.data.contamination import ItemIndex
from sft_lab.data.conversation import Conversation, RowError, sample_digest
from sft_lab.data.duplicates import near_duplicates
from sft_lab.data.formats import FORMATS, FormatName, SourceFormat, detect
from sft_lab.data.sources import Source, rows
from sft_lab.errors import RequestError

MAX_LISTED = 20  # contaminated rows and items that a report names one by one


@dataclass
class Report:
    """Count the rows of a source by what happened to them.

    Attributes:
        rows: Rows read.
        dropped: Rows left out, by reason.
        repaired: Rows used after a repair, by repair; a row may have had several.
        examples: The place of the first row of each reason and repair.
        unusable: Of those left out, the rows that cannot be used, by reason.
        duplicates: Rows with the same content as an earlier row, used or not.
        contaminated: Rows that hold a benchmark's items, by benchmark.
        contaminated_rows: Places of the first of them, with the item and the shared words.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
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

    @property
    def lines(self) -> list[str]:
        """The report for people, one line for each finding."""
        found = []
        for what, counts in (("left out", self.dropped), ("repaired", self.repaired)):
            if counts:
                reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
                total = f"{counts.total()} of {self.rows} rows " if what == "left out" else ""
                found.append(f"{total}{what}: {reasons}")
        if self.duplicates:
            found.append(f"{self.duplicates} rows repeat another row")
        for benchmark, count in self.contaminated.items():
            found.append(f"{count} rows hold items of {benchmark}, or 13 words of one")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        # dataclasses.asdict makes a Counter of tuples, which is another Counter.
        return {
            f.name: dict(value) if isinstance(value := getattr(self, f.name), Counter) else value
            for f in fields(self)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Report":
        """Return the report that ``to_json`` wrote."""
        keys = ("dropped", "repaired", "unusable", "contaminated")
        counters = {key: Counter(values[key]) for key in keys}
        return cls(**{**values, **counters})


@dataclass(frozen=True)
class Sample:
    """One usable row.

    Attributes:
        place: Its place in the file, ``line n`` or ``row n``.
        id: SHA-256 of its content as hex.
        conversation: Its content, after repairs.
        repairs: The repairs that were made.
    """

    place: str
    id: str
    conversation: Conversation
    repairs: tuple[str, ...]


def samples(
    name: str, source: Source, index: ItemIndex, *, drop_contaminated: bool, report: Report
) -> Iterator[Sample]:
    """Yield the samples of a source in file order, and count every row in the report.

    Args:
        name: The source's name.
        source: The source.
        index: The benchmark items to search for.
        drop_contaminated: Leave out rows that hold one.
        report: Filled as rows are read; complete after the last. The caller counts the repairs of
            a sample, because it knows whether the sample is used.

    Raises:
        RequestError: If the source cannot be read, has no rows, or its format is unknown.
    """
    alike: Mapping[str, str] = {}
    if source.near_duplicates is not None:
        # A row that is left out for another reason makes no other row a near duplicate. Rows that
        # are too long are not known yet: a row may be left out for one that is dropped later.
        kept = _deduplicated(name, source, index, drop_contaminated, Report())
        found = {sample.id: "\n".join(texts(sample.conversation)) for sample in kept}
        alike = near_duplicates(found, source.near_duplicates)
    for sample in _deduplicated(name, source, index, drop_contaminated, report):
        if sample.id in alike:
            report.drop(f"near duplicate ({source.near_duplicates} or more alike)", sample.place)
        else:
            yield sample


def texts(conversation: Conversation) -> list[str]:
    """Return the text of every message."""
    return [message["content"] for message in conversation.messages]


def _deduplicated(
    name: str, source: Source, index: ItemIndex, drop_contaminated: bool, report: Report
) -> Iterator[Sample]:
    """Yield the samples without the contaminated ones and the copies that are to be dropped."""
    drop_copies = source.duplicates == "drop" or source.near_duplicates is not None
    seen: set[str] = set()
    for sample in _cleaned(name, source, report):
        if (match := index.find(texts(sample.conversation))) is not None:
            report.contaminated[match.benchmark] += 1
            if len(report.contaminated_rows) < MAX_LISTED:
                report.contaminated_rows.append(
                    f"{sample.place}: {match.benchmark} {match.item_id} ({match.kind}): "
                    f"{match.words}"
                )
            if drop_contaminated:
                report.drop(f"holds an item of {match.benchmark}", sample.place)
                continue
        if sample.id in seen:
            report.duplicates += 1
            if drop_copies:
                report.drop("repeats another row", sample.place)
                continue
        seen.add(sample.id)
        yield sample


def _cleaned(name: str, source: Source, report: Report) -> Iterator[Sample]:
    """Yield the usable samples that the source's filters keep."""
    chosen = source.row_filter(name)
    row_format = source.format
    for place, row in rows(name, source):
        report.rows += 1
        row_format = row_format or detect(row)
        where = f"corpus.sources.{name}: {source.path}, {place}"
        if row_format is None:
            raise RequestError(
                f"{where} has the keys {', '.join(sorted(row))}, which fit "
                f"no known format; set corpus.sources.{name}.format, one of {', '.join(FORMATS)}."
            )
        try:
            keeps = chosen.keeps_row(row)
        except ValueError as fault:
            raise RequestError(f"{where}: {fault}") from fault
        if not keeps:
            report.drop(f"not where {source.where}", place)
            continue
        try:
            cleaned = clean(_read(row_format, row))
        except RowError as fault:
            report.drop(str(fault), place, unusable=True)
            continue
        except Exception as fault:  # of a class from outside the package
            raise RequestError(
                f"{where}: format {type(row_format).__name__} failed on this row: "
                f"{type(fault).__name__}: {fault}"
            ) from fault
        if (reason := chosen.reason(texts(cleaned.conversation))) is not None:
            report.drop(reason, place)
            continue
        digest = sample_digest(cleaned.conversation)
        yield Sample(place, digest, cleaned.conversation, cleaned.repairs)
    if not report.rows:
        raise RequestError(
            f"corpus.sources.{name}.path: {source.path} holds no rows; name another, or take "
            f"corpus.sources.{name} out."
        )


def _read(row_format: FormatName | SourceFormat, row: Mapping[str, Any]) -> Conversation:
    if not isinstance(row_format, SourceFormat):
        return FORMATS[row_format][1](row)
    try:
        return row_format.conversation(row)
    except KeyError as fault:
        raise RowError(f"missing key {fault}") from fault


def check_dropped(name: str, source: Source, report: Report) -> None:
    """Refuse a source of which too many rows cannot be used.

    Raises:
        RequestError: Naming the limit and an example.
    """
    unusable = report.unusable.total()
    if unusable > source.max_dropped * report.rows:
        reason = next(iter(report.unusable))
        raise RequestError(
            f"corpus.sources.{name}: {unusable} of {report.rows} rows cannot be used, e.g. "
            f"{source.path}, {report.examples[reason]}: {reason}. "
            f"Fix them, or raise corpus.sources.{name}.max_dropped from {source.max_dropped}."
        )
