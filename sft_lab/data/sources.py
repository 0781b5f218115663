"""A source: one SFT data set on disk or the hub, and its settings."""

from dataclasses import dataclass, field
from typing import Literal

from sft_lab.config.ranges import PositiveShare, UnitInterval
from sft_lab.data.formats import FormatName, SourceFormat
from sft_lab.data.row_files import RowFiles
from sft_lab.data.row_filters import RowFilter
from sft_lab.errors import RequestError


@dataclass(frozen=True)
class Source:
    """One SFT data set, and the choice of its rows to use.

    Args:
        path: A JSON, JSONL (also ``.gz``) or Parquet file, a folder or pattern (``rows/*.parquet``)
            of such files, ``world://data/...``, or a hub name that ``datasets.load_dataset`` knows.
        format: The row format, by name or a ``SourceFormat`` by ``class_path``; by default
            detected from the keys of the first row.
        split: The split of a hub data set; files have none.
        subset: The configuration of a hub data set that has several, such as ``main`` of
            ``openai/gsm8k``.
        data_files: Which files of a hub data set to read; by default all.
        revision: A branch, tag or commit of a hub data set; by default the main branch.
        max_dropped: Largest share of rows that may be unusable, in [0, 1]; rows that are too long,
            or left out by the keys below, do not count.
        where: Expression over the keys of a row, true of those to use: ``correct == true``.
        include: Regular expressions; a row is used if one of them matches in its text.
        exclude: Regular expressions; a row is left out if one of them matches in its text.
        duplicates: ``drop`` keeps one of the rows of equal content.
        near_duplicates: Least overlap of word 5-grams (Jaccard), in (0, 1], at which rows count as
            near duplicates; one of them is kept, also of rows of equal content.
    """

    path: str
    format: FormatName | SourceFormat | None = None
    split: str = "train"
    subset: str | None = None
    data_files: str | None = None
    revision: str | None = None
    max_dropped: UnitInterval = 0.1
    where: str | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    duplicates: Literal["keep", "drop"] = "keep"
    near_duplicates: PositiveShare | None = None

    def row_files(self, name: str) -> RowFiles:
        """Return the place of the rows; ``name`` is the source's, for errors."""
        return RowFiles(
            f"corpus.sources.{name}.path",
            self.path,
            split=self.split,
            subset=self.subset,
            data_files=self.data_files,
            revision=self.revision,
        )

    def row_filter(self, name: str) -> RowFilter:
        """Return the filter made of ``where``, ``include`` and ``exclude``.

        Raises:
            RequestError: If one of them is malformed.
        """
        try:
            return RowFilter(self.where, self.include, self.exclude)
        except ValueError as fault:
            raise RequestError(f"corpus.sources.{name}: {fault}") from fault


def check_source(name: str, source: Source) -> None:
    """Check a source's settings without reading it.

    Raises:
        RequestError: Naming the key, its value and the fix.
    """
    source.row_filter(name)
