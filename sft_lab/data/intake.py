"""Filter, clean and deduplicate the rows of a source, and account for every row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sft_lab.data.cleaning import clean
from sft_lab.data.contamination import ItemIndex
from sft_lab.data.conversation import Conversation, RowError, sample_digest
from sft_lab.data.duplicates import near_duplicates
from sft_lab.data.fields import Fields
from sft_lab.data.formats import FORMATS, FormatName, SourceFormat, detect
from sft_lab.data.intake_report import MAX_LISTED, IntakeReport
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError


@dataclass(frozen=True)
class Sample:
    """One usable row.

    Attributes:
        place: Its place in the file, ``line n`` or ``row n``.
        id: SHA-256 of its content as hex.
        conversation: Its content, after repairs.
        repairs: Names of the repairs.
    """

    place: str
    id: str
    conversation: Conversation
    repairs: tuple[str, ...]


def samples(
    name: str, source: Source, index: ItemIndex, *, drop_contaminated: bool, report: IntakeReport
) -> Iterator[Sample]:
    """Yield the usable rows of a source in file order, and count every row in the report.

    Args:
        name: The source's name.
        source: The source.
        index: The benchmark items to search for.
        drop_contaminated: Whether to leave out rows that hold one.
        report: Filled as rows are read; complete after the last. The caller counts the repairs of
            a sample, because it knows whether the sample is used.

    Raises:
        RequestError: If the source cannot be read, has no rows, or its format is unknown.
    """
    duplicates: Mapping[str, str] = {}
    if source.near_duplicates is not None:
        # Rows left out for another reason do not count. Lengths are unknown here, so a row may be
        # left out as a near duplicate of one that later turns out to be too long.
        kept = _deduplicated(name, source, index, drop_contaminated, IntakeReport())
        found = {sample.id: "\n".join(sample.conversation.texts) for sample in kept}
        duplicates = near_duplicates(found, source.near_duplicates)
    for sample in _deduplicated(name, source, index, drop_contaminated, report):
        if sample.id in duplicates:
            report.drop(f"near duplicate ({source.near_duplicates} or more alike)", sample.place)
        else:
            yield sample


def _deduplicated(
    name: str, source: Source, index: ItemIndex, drop_contaminated: bool, report: IntakeReport
) -> Iterator[Sample]:
    """Yield the samples except contaminated ones and copies, where those are to be dropped."""
    drop_copies = source.duplicates == "drop" or source.near_duplicates is not None
    seen: set[str] = set()
    for sample in _cleaned(name, source, report):
        if (match := index.find(sample.conversation.texts)) is not None:
            report.contaminated[match.benchmark] += 1
            if len(report.contaminated_rows) < MAX_LISTED:
                report.contaminated_rows.append(
                    f"{sample.place}: {match.benchmark} {match.item_id} ({match.kind}): "
                    f"{match.words}"
                )
            if drop_contaminated:
                report.drop(f"contains an item of {match.benchmark}", sample.place)
                continue
        if sample.id in seen:
            report.duplicates += 1
            if drop_copies:
                report.drop("repeats another row", sample.place)
                continue
        seen.add(sample.id)
        yield sample


def _cleaned(name: str, source: Source, report: IntakeReport) -> Iterator[Sample]:
    """Yield the usable samples that the source's filters keep."""
    chosen = source.row_filter(name)
    row_format = source.format
    for place, row, content in source.row_files(name).rows():
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
            conversation, unread = _read(row_format, content)
            report.count_unused(unread - chosen.keys)
            cleaned = clean(conversation)
        except RowError as fault:
            report.drop(str(fault), place, unusable=True)
            continue
        except Exception as fault:  # raised by a class from outside the package
            raise RequestError(
                f"{where}: format {type(row_format).__name__} failed on this row: "
                f"{type(fault).__name__}: {fault}"
            ) from fault
        if (reason := chosen.reason(cleaned.conversation.texts)) is not None:
            report.drop(reason, place)
            continue
        digest = sample_digest(cleaned.conversation)
        yield Sample(place, digest, cleaned.conversation, cleaned.repairs)
    if not report.rows:
        raise RequestError(
            f"corpus.sources.{name}.path: {source.path} holds no rows; name another, or take "
            f"corpus.sources.{name} out."
        )


def _read(
    row_format: FormatName | SourceFormat, row: Mapping[str, Any]
) -> tuple[Conversation, set[str]]:
    """Return a row as a conversation, and the keys that its format did not read.

    Which keys a format from outside the package reads is its own affair.
    """
    if not isinstance(row_format, SourceFormat):
        fields = Fields(row)
        return FORMATS[row_format][1](fields), fields.unread
    try:
        return row_format.conversation(row), set()
    except KeyError as fault:
        raise RowError(f"missing key {fault}") from fault
