"""The corpus: the sources of a run, tokenised once by one renderer, some rows held out."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sft_lab.data.formats import RowError
from sft_lab.data.hub import is_hub_name, settle_offline
from sft_lab.data.rendering import Renderer, RowTooLongError, TokenizedRow
from sft_lab.data.shares import hash_rank
from sft_lab.data.sources import Source, check_dropped, read_source, sample_digest
from sft_lab.errors import RequestError
from sft_lab.paths import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedSource:
    """A source as the tokens of its usable rows.

    Attributes:
        rows: One per usable row, in file order.
        sample_ids: SHA-256 of each row's content as hex.
        dropped: Rows left out, by reason.
        ranked: Row indices in hash rank order, held-out rows first.
        val_rows: How many of those are held out.
    """

    rows: list[TokenizedRow]
    sample_ids: list[str]
    dropped: Mapping[str, int]
    ranked: list[int]
    val_rows: int

    @property
    def trainable(self) -> list[int]:
        """Rows that may be trained on, in hash rank order."""
        return self.ranked[self.val_rows :]

    @property
    def held_out(self) -> list[TokenizedRow]:
        """The rows of ``val_loss/<source>``."""
        return [self.rows[index] for index in self.ranked[: self.val_rows]]

    @property
    def digest(self) -> str:
        """SHA-256 over all sample ids, whatever their order in the file."""
        return hashlib.sha256("".join(sorted(self.sample_ids)).encode()).hexdigest()


class Corpus:
    """All sources of a run.

    Args:
        sources: Sources by name.
        tokenizer: A folder or hub name, as for ``AutoTokenizer.from_pretrained``; usually the
            base's.
        template: A named chat template, or None for the tokenizer's own.
        max_length: Longest row in tokens; longer ones are dropped and counted.
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
            if not 0 <= source.max_dropped <= 1:
                raise RequestError(
                    f"corpus.sources.{name}.max_dropped must lie in [0, 1], "
                    f"got {source.max_dropped}."
                )
        if max_length < 2:
            raise RequestError(f"corpus.max_length must be 2 tokens or more, got {max_length}.")
        if val_rows < 0:
            raise RequestError(f"corpus.val_rows must be 0 or more, got {val_rows}.")
        self.sources = sources
        self.tokenizer_name = tokenizer
        self.template = template
        self.max_length = max_length
        self.val_rows = val_rows
        self.seed = seed
        self.loaded: dict[str, TokenizedSource] = {}

    @cached_property
    def renderer(self) -> Renderer:
        """The one renderer of training and evaluation."""
        return Renderer(load_tokenizer(self.tokenizer_name), self.template)

    def load(self, names: Iterable[str]) -> None:
        """Read and tokenise the named sources, each once.

        Raises:
            RequestError: If a source cannot be read, or has too few rows that can be trained on.
        """
        for name in names:
            if name not in self.loaded:
                self.loaded[name] = self._tokenize_source(name)

    def _tokenize_source(self, name: str) -> TokenizedSource:
        read = read_source(name, self.sources[name])
        dropped: Counter[str] = Counter(read.dropped)
        rows: list[TokenizedRow] = []
        sample_ids: list[str] = []
        unusable = dropped.total()
        for conversation in read.conversations:
            try:
                rows.append(self.renderer.row(conversation, self.max_length))
                sample_ids.append(sample_digest(conversation))
            except RowError as fault:
                dropped[str(fault)] += 1
                if not isinstance(fault, RowTooLongError):
                    unusable += 1
                    check_dropped(name, self.sources[name], unusable, read.total, str(fault))
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        if reasons:
            log.warning(
                "%s: %d of %d rows left out: %s", name, dropped.total(), read.total, reasons
            )
        ranked = hash_rank(sample_ids, self.seed)
        val_rows = self.val_rows
        # Equal rows stand together in hash rank: training must not see what is held out.
        while 0 < val_rows < len(rows) and (
            sample_ids[ranked[val_rows]] == sample_ids[ranked[val_rows - 1]]
        ):
            val_rows += 1
        if len(rows) <= val_rows:
            raise RequestError(
                f"corpus.sources.{name}: no row is left to train on: {len(rows)} usable rows "
                f"({reasons or 'none dropped'}), of which corpus.val_rows = {self.val_rows} are "
                f"held out. Raise corpus.max_length = {self.max_length}, or hold out fewer."
            )
        return TokenizedSource(rows, sample_ids, dict(dropped), ranked, val_rows)


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
