"""The corpus: the sources of a run, tokenised once by one renderer, some rows held out."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft_lab.data.contamination import ItemIndex
from sft_lab.data.conversation import RowError
from sft_lab.data.formats import SourceFormat, source_code_digest
from sft_lab.data.intake import Report, Sample, check_dropped, samples
from sft_lab.data.render_pool import Rows, render
from sft_lab.data.rendering import Renderer, RowTooLongError, TokenizedRow, TooLong
from sft_lab.data.sources import Source, check_source, content_digest
from sft_lab.data.token_store import TokenStore, TokenWriter
from sft_lab.errors import RequestError
from sft_lab.paths import cache_dir, is_hub_name, resolve, settle_offline

log = logging.getLogger(__name__)

Items = Mapping[str, Mapping[str, Sequence[str]]]
"""Texts of benchmark items, by benchmark and item id."""

_UNFINISHED = ".unfinished-"
_ABANDONED_S = 24 * 3600
_CACHE_VERSION = 2  # what cleaning, rendering and checks make of the same input; raise on change


@dataclass(frozen=True)
class TokenizedSource:
    """A source as the tokens of its usable rows.

    Attributes:
        rows: One per usable row, in file order, each read when it is asked for.
        report: What became of every row of the source.
        ranked: Row indices in hash rank order, held-out rows first.
        val_rows: How many of those are held out.
    """

    rows: TokenStore
    report: Report
    ranked: list[int]
    val_rows: int

    @property
    def sample_ids(self) -> list[str]:
        """SHA-256 of each row's content as hex."""
        return self.rows.sample_ids

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 ``[N]``."""
        return self.rows.num_tokens

    @property
    def num_target_tokens(self) -> NDArray[np.int32]:
        """Tokens of each row that carry loss, int32 ``[N]``."""
        return self.rows.num_target_tokens

    @property
    def trainable(self) -> list[int]:
        """Rows that may be trained on, in hash rank order."""
        return self.ranked[self.val_rows :]

    @property
    def held_out(self) -> list[TokenizedRow]:
        """The rows of ``val_loss/<source>``."""
        return [self.rows[index] for index in self.ranked[: self.val_rows]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all sample ids, whatever their order in the file."""
        return hashlib.sha256("".join(sorted(self.sample_ids)).encode()).hexdigest()


class Corpus:
    """All sources of a run.

    Tokenised rows are kept in the folder ``SFT_LAB_CACHE``, ``~/.cache/sft_lab`` by default, under
    a fingerprint of all that decides them, and read from there the next time.

    Args:
        sources: Sources by name.
        tokenizer: A folder or hub name, as for ``AutoTokenizer.from_pretrained``; usually the
            base's.
        template: A named chat template, or None for the tokenizer's own.
        max_length: Longest row in tokens.
        too_long: What becomes of longer rows, which are counted: ``drop``, or ``cut`` behind the
            last answer that fits.
        contamination: What becomes of rows that hold a benchmark's item, or 13 words of one:
            ``report`` counts them, ``drop`` leaves them out as well, ``ignore`` does not look.
        val_rows: Rows of each source held out for ``val_loss/<source>``, before any share is
            taken; a copy of a held-out row is held out with it.
        seed: Seed of the hash rank by which shares and held-out rows are chosen.

    Raises:
        RequestError: If an argument is out of range.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        tokenizer: str,
        template: str | None = None,
        max_length: int = 2048,
        too_long: TooLong = "drop",
        contamination: Literal["report", "drop", "ignore"] = "report",
        val_rows: int = 0,
        seed: int = 0,
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
        if max_length < 2:
            raise RequestError(f"corpus.max_length must be 2 tokens or more, got {max_length}.")
        if val_rows < 0:
            raise RequestError(f"corpus.val_rows must be 0 or more, got {val_rows}.")
        self.sources = sources
        self.tokenizer_name = tokenizer
        self.template = template
        self.max_length = max_length
        self.too_long: TooLong = too_long
        self.contamination = contamination
        self.val_rows = val_rows
        self.seed = seed
        self.loaded: dict[str, TokenizedSource] = {}

    @cached_property
    def renderer(self) -> Renderer:
        """The one renderer of training and evaluation."""
        return Renderer(load_tokenizer(self.tokenizer_name), self.template)

    def load(self, names: Iterable[str], items: Items | None = None) -> None:
        """Read and tokenise the named sources, each once.

        Args:
            names: Which sources.
            items: Texts of benchmark items, to be looked for in the rows.

        Raises:
            RequestError: If a source cannot be read, or has too few rows that can be trained on.
        """
        index = ItemIndex({} if self.contamination == "ignore" else items or {})
        for name in names:
            if name not in self.loaded:
                self.loaded[name] = self._load_source(name, index)

    def _load_source(self, name: str, index: ItemIndex) -> TokenizedSource:
        fingerprint = self._fingerprint(name, index)
        if fingerprint is None:  # no way to see whether it has changed
            with tempfile.TemporaryDirectory(prefix="sft_lab") as folder:
                self._tokenize(name, index, Path(folder))
                return self._opened(name, Path(folder))
        entry = cache_dir() / "tokens" / fingerprint
        if not (entry / "report.json").is_file():
            self._fill(name, index, entry)
        return self._opened(name, entry)

    def _fingerprint(self, name: str, index: ItemIndex) -> str | None:
        """Return a SHA-256 of everything that determines a source's tokens; None if unknown."""
        source = self.sources[name]
        content = content_digest(name, source)
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
            "ending": "".join(Path(source.path).suffixes[-2:]),
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

    def _fill(self, name: str, index: ItemIndex, entry: Path) -> None:
        """Make an entry of the cache: beside its place, and then moved there whole."""
        folder: Path | None = None
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(entry.parent)
            folder = Path(tempfile.mkdtemp(dir=entry.parent, prefix=_UNFINISHED))
            self._tokenize(name, index, folder)
            with contextlib.suppress(OSError):  # another process was faster, with the same rows
                folder.rename(entry)
        except OSError as fault:  # a full disk as well; faults of the source are request errors
            raise RequestError(
                f"SFT_LAB_CACHE: tokenised rows cannot be kept under {entry.parent}: "
                f"{fault.strerror or fault}. Set it to a folder with room that can be written to."
            ) from fault
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _tokenize(self, name: str, index: ItemIndex, folder: Path) -> None:
        """Write ``tokens.arrow`` and ``report.json`` of one source."""
        report = Report()
        source = self.sources[name]
        stream = samples(
            name, source, index, drop_contaminated=self.contamination == "drop", report=report
        )
        with TokenWriter(folder / "tokens.arrow") as writer:
            limits = (self.max_length, self.too_long)
            for chunk, rendered in render(stream, self.renderer, *limits):
                kept = list(self._kept(name, chunk, rendered, report))
                if kept:
                    ids, rows = zip(*kept, strict=True)
                    writer.add(ids, rows)
        check_dropped(name, source, report)
        (folder / "report.json").write_text(json.dumps(report.to_json()), encoding="utf-8")

    def _kept(
        self, name: str, chunk: Sequence[Sample], rows: Rows | None, report: Report
    ) -> Iterable[tuple[str, TokenizedRow]]:
        if rows is None:
            rows = [self._row(name, sample) for sample in chunk]  # one of them says what is wrong
        for sample, row in zip(chunk, rows, strict=True):
            if isinstance(row, RowError):
                unusable = not isinstance(row, RowTooLongError)
                report.drop(str(row), sample.place, unusable=unusable)
                continue
            cut = (f"cut to max_length {self.max_length}",) if row.cut else ()
            for repair in (*sample.repairs, *cut):
                report.repair(repair, sample.place)
            yield sample.id, row

    def _row(self, name: str, sample: Sample) -> TokenizedRow | RowError:
        try:
            [row] = self.renderer.rows([sample.conversation], self.max_length, self.too_long)
        except RequestError as fault:
            where = f"{self.sources[name].path}, {sample.place}"
            raise RequestError(f"corpus.sources.{name}: {where}: {fault}") from fault
        return row

    def _opened(self, name: str, entry: Path) -> TokenizedSource:
        try:
            rows = TokenStore(entry / "tokens.arrow")
            report = Report.from_json(json.loads((entry / "report.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as fault:  # of Arrow and JSON as well
            raise RequestError(
                f"SFT_LAB_CACHE: the tokenised rows of '{name}' in {entry} cannot be read: "
                f"{str(fault).splitlines()[0]}. Remove that folder, and they are made again."
            ) from fault
        check_dropped(name, self.sources[name], report)
        for line in report.lines:
            log.warning("%s: %s", name, line)
        ranked = hash_rank(rows.sample_ids, self.seed)
        val_rows = self.val_rows
        # Equal rows stand together in hash rank: training must not see what is held out.
        while 0 < val_rows < len(rows) and (
            rows.sample_ids[ranked[val_rows]] == rows.sample_ids[ranked[val_rows - 1]]
        ):
            val_rows += 1
        if len(rows) <= val_rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
            raise RequestError(
                f"corpus.sources.{name}: no row is left to train on: {len(rows)} usable rows "
                f"({reasons or 'none dropped'}), of which corpus.val_rows = {self.val_rows} are "
                f"held out. Hold out fewer, or look at why rows are left out."
            )
        return TokenizedSource(rows, report, ranked, val_rows)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs have left; one that is at work has written within the day."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - written > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer from a folder or the hub.

    Raises:
        RequestError: If there is none, or it cannot be fetched.
    """
    from transformers import AutoTokenizer  # seconds to import; `--help` must not wait for it

    path = resolve(name)
    if is_hub_name(path):
        settle_offline()
    elif not Path(path).exists():
        raise RequestError(
            f"corpus.tokenizer: there is no {path}. "
            "Name a folder with tokenizer files, or a hub name."
        )
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as fault:  # a damaged tokenizer.json raises a bare one
        reason = str(fault).splitlines()[0]
        raise RequestError(
            f"corpus.tokenizer: no tokenizer can be loaded from {name}: {reason} "
            "Name a folder with tokenizer files, or a hub name while online."
        ) from fault


def hash_rank(digests: Sequence[str], seed: int) -> list[int]:
    """Return row indices ordered by a hash of each sample's content and a seed.

    The order depends on nothing else: not on the file's order, on other sources, on the machine or
    on Python's version. Its beginnings are nested subsets. Equal samples keep their file order.
    """
    keys = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in digests]
    return sorted(range(len(digests)), key=lambda row: (keys[row], row))
