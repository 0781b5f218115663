"""The corpus: the sources of a run, tokenised once by one renderer, some rows held out."""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from sft_lab.config.ranges import NonNegativeInt, Seed
from sft_lab.data.contamination import ItemIndex
from sft_lab.data.conversation import RowError
from sft_lab.data.formats import SourceFormat, source_code_digest
from sft_lab.data.hash_rank import hash_rank
from sft_lab.data.intake import Sample, samples
from sft_lab.data.intake_report import IntakeReport, check_dropped
from sft_lab.data.render_pool import render
from sft_lab.data.rendering import Rendered, Renderer
from sft_lab.data.sources import Source, check_source
from sft_lab.data.token_cache import cache_entry
from sft_lab.data.token_store import TokenStore, TokenWriter
from sft_lab.data.tokenized_row import RowTooLongError, TokenizedRow, TooLong
from sft_lab.data.tokenized_source import TokenizedSource
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.paths import pinned

log = logging.getLogger(__name__)

Items = Mapping[str, Mapping[str, Sequence[str]]]
"""Texts of benchmark items, by benchmark and item id."""

_CACHE_VERSION = 6  # raise it if cleaning, rendering or checks change the tokens of the same input


class Corpus:
    """All sources of a run.

    Tokenised rows are cached in the folder ``SFT_LAB_CACHE``, ``~/.cache/sft_lab`` by default,
    under a fingerprint of everything that determines them.

    Args:
        sources: Sources by name.
        tokenizer: A folder or hub name, as for ``AutoTokenizer.from_pretrained``; by default the
            base's. Another one must give the base's tokens the same ids.
        tokenizer_revision: Branch, tag or commit of a tokenizer on the hub that is not the base's,
            which has ``model.revision``.
        template: A named chat template, or None for the tokenizer's own.
        template_args: Values of variables that the template reads, such as
            ``{enable_thinking: false}``.
        max_length: Longest row in tokens.
        too_long: ``drop`` longer rows, or ``cut`` them after the last answer that fits; both are
            counted.
        contamination: ``report`` counts rows that hold a benchmark's item, or 13 words of one,
            ``drop`` also leaves them out, ``ignore`` does not search for them.
        val_rows: Rows of each source held out for ``val_loss/<source>``, before any share is
            taken; a copy of a held-out row is held out with it.
        seed: Seed of the hash order by which shares and held-out rows are chosen.

    Raises:
        RequestError: If an argument is out of range.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        tokenizer: str,
        tokenizer_revision: str | None = None,
        template: str | None = None,
        template_args: dict[str, Any] | None = None,
        max_length: Annotated[int, Ge(2)] = 2048,
        too_long: TooLong = "drop",
        contamination: Literal["report", "drop", "ignore"] = "report",
        val_rows: NonNegativeInt = 0,
        seed: Seed = 0,
    ) -> None:
        if not sources:
            raise RequestError("corpus.sources names no source.")
        for name, source in sources.items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name == "all":
                raise RequestError(
                    f"corpus.sources: {name!r} becomes part of metric keys; use letters, digits "
                    "and _ only, and not 'all', which is the key of all sources together."
                )
            check_source(name, source)
        self.sources = sources
        self.tokenizer_name = pinned(tokenizer, tokenizer_revision)
        self.template = template
        self.template_args = template_args
        self.max_length = max_length
        self.too_long: TooLong = too_long
        self.contamination = contamination
        self.val_rows = val_rows
        self.seed = seed
        self.loaded: dict[str, TokenizedSource] = {}

    @cached_property
    def renderer(self) -> Renderer:
        """Return the renderer that training and evaluation share."""
        return Renderer(load_tokenizer(self.tokenizer_name), self.template, self.template_args)

    def load(self, names: Iterable[str], items: Items | None = None) -> None:
        """Read and tokenise the named sources; those loaded before are kept.

        Args:
            names: Names of sources.
            items: Texts of benchmark items to search for in the rows.

        Raises:
            RequestError: If a source cannot be read, or has too few rows that can be trained on.
        """
        index = ItemIndex({} if self.contamination == "ignore" else items or {})
        for name in names:
            if name not in self.loaded:
                self.loaded[name] = self._load_source(name, index)

    def _load_source(self, name: str, index: ItemIndex) -> TokenizedSource:
        fingerprint = self._fingerprint(name, index)
        if fingerprint is None:  # its files or code cannot be read, so a change would go unnoticed
            with tempfile.TemporaryDirectory(prefix="sft_lab") as folder:
                self._tokenize(name, index, Path(folder))
                return self._open(name, Path(folder))
        entry = cache_entry(fingerprint, lambda folder: self._tokenize(name, index, folder))
        return self._open(name, entry)

    def _fingerprint(self, name: str, index: ItemIndex) -> str | None:
        """Return a SHA-256 of everything that determines a source's tokens; None if unknown."""
        source = self.sources[name]
        place = source.row_files(name)
        content = place.digest()
        if content is None:
            return None
        settings = {k: v for k, v in asdict(source).items() if k not in ("path", "max_dropped")}
        if isinstance(source.format, SourceFormat):
            code = source_code_digest(source.format)
            if code is None:
                return None
            kind = type(source.format)
            settings["format"] = [kind.__module__, kind.__qualname__, vars(source.format), code]
        decisive = {
            "version": _CACHE_VERSION,
            "content": content,
            "endings": ["".join(file.suffixes[-2:]) for file in place.files() or []],
            "source": settings,
            "renderer": self.renderer.fingerprint,
            "max_length": self.max_length,
            "too_long": self.too_long,
            "contamination": self.contamination,
            "items": index.digest,
        }
        return hashlib.sha256(
            json.dumps(decisive, sort_keys=True, default=repr).encode()
        ).hexdigest()

    def _tokenize(self, name: str, index: ItemIndex, folder: Path) -> None:
        """Write ``tokens.arrow`` and ``report.json`` of one source."""
        report = IntakeReport()
        source = self.sources[name]
        stream = samples(
            name, source, index, drop_contaminated=self.contamination == "drop", report=report
        )
        with TokenWriter(folder / "tokens.arrow") as writer:
            limits = (self.max_length, self.too_long)
            for chunk, rendered in render(stream, self.renderer, *limits):
                kept = list(self._kept(chunk, rendered, report))
                if kept:
                    ids, rows = zip(*kept, strict=True)
                    writer.add(ids, rows)
        check_dropped(name, source, report)
        (folder / "report.json").write_text(json.dumps(report.to_json()), encoding="utf-8")

    def _kept(
        self, chunk: Sequence[Sample], rendered: Sequence[Rendered], report: IntakeReport
    ) -> Iterable[tuple[str, TokenizedRow]]:
        for sample, rows in zip(chunk, rendered, strict=True):
            if isinstance(rows, RowError):
                unusable = not isinstance(rows, RowTooLongError)
                report.drop(str(rows), sample.place, unusable=unusable)
                continue
            report.split += len(rows) - 1
            split = ("made a row of every answer",) if len(rows) > 1 else ()
            cut = (f"cut to max_length {self.max_length}",) if rows[0].cut else ()
            for repair in (*sample.repairs, *split, *cut):
                report.repair(repair, sample.place)
            yield from ((sample.id, row) for row in rows)

    def _open(self, name: str, entry: Path) -> TokenizedSource:
        rows = TokenStore(entry / "tokens.arrow")
        report = IntakeReport.from_json(json.loads((entry / "report.json").read_bytes()))
        check_dropped(name, self.sources[name], report)
        for line in report.lines:
            log.warning("%s: %s", name, line)
        ranked = hash_rank(rows.sample_ids, self.seed)
        val_rows = self.val_rows
        # Equal rows are neighbours in hash order; training must not see a copy of a held-out row.
        while 0 < val_rows < len(rows) and (
            rows.sample_ids[ranked[val_rows]] == rows.sample_ids[ranked[val_rows - 1]]
        ):
            val_rows += 1
        if len(rows) <= val_rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
            raise RequestError(
                f"corpus.sources.{name}: no row is left to train on: {len(rows)} usable rows "
                f"({reasons or 'none dropped'}), of which corpus.val_rows = {self.val_rows} are "
                f"held out. Hold out fewer, or fix the rows that are left out."
            )
        return TokenizedSource(rows, report, ranked, val_rows)
