"""The corpus: every source of a run, tokenised once by one renderer, with rows held out for val_loss."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sft_lab.data.formats import Conversation, RowError
from sft_lab.data.rendering import Renderer, TokenizedRow
from sft_lab.data.shares import hash_rank
from sft_lab.data.sources import Source, read_source, sample_digest
from sft_lab.errors import RequestError
from sft_lab.paths import resolve


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
        tokenizer: A folder or hub name, as for ``AutoTokenizer.from_pretrained``; usually the base's.
        template: A named chat template, or None for the tokenizer's own.
        max_length: Longest row in tokens; longer ones are dropped and counted.
        val_rows: Rows of each source held out for ``val_loss/<source>``, before any share is taken.
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
        for name in sources:
            if not name.isidentifier():
                raise RequestError(
                    f"corpus.sources: {name!r} becomes part of metric keys; use letters, digits and _ only."
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
        digests: list[str] = []
        for conversation in read.conversations:
            try:
                rows.append(self._tokenize(conversation))
                digests.append(sample_digest(conversation))
            except RowError as fault:
                dropped[str(fault)] += 1
        if len(rows) <= self.val_rows:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in dropped.items())
                or "none dropped"
            )
            raise RequestError(
                f"corpus.sources.{name}: {len(rows)} usable rows ({reasons}), no more than the "
                f"corpus.val_rows = {self.val_rows} that are held out. Raise corpus.max_length = {self.max_length}, "
                "or hold out fewer."
            )
        return TokenizedSource(
            rows, digests, dict(dropped), hash_rank(digests, self.seed), self.val_rows
        )

    def _tokenize(self, conversation: Conversation) -> TokenizedRow:
        row = self.renderer.row(conversation)
        if len(row.input_ids) > self.max_length:
            raise RowError(f"longer than max_length {self.max_length}")
        if not row.num_target_tokens:
            raise RowError("no target token")
        return row


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer from a folder or the hub.

    Raises:
        RequestError: If there is none, or it cannot be fetched.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import; `--help` must not wait

    path = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as fault:
        reason = str(fault).splitlines()[0]
        raise RequestError(
            f"corpus.tokenizer: no tokenizer can be loaded from {name}: {reason} "
            "Name a folder with tokenizer files, or a hub name while online."
        ) from fault
