"""Batches: the micro-batches of a planned pass, of held-out rows, of prompts; their loaders."""

import math
import shutil
import signal
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from sft_lab.data.corpus import Corpus
from sft_lab.data.tokenized_row import IGNORED
from sft_lab.distributed import share_out
from sft_lab.errors import SIGNALS, RequestError
from sft_lab.evaluation.generation import batches_longest_first
from sft_lab.training.order import RowRef
from sft_lab.training.packing import pack_evenly
from sft_lab.training.plan import Bin, Window

_SHARED_BYTES = 4 * 1024**2  # semaphores take a page each, batches some kilobytes


class Batch(TypedDict):
    """One micro-batch of training sequences, each of one row or of several, end to end.

    There is no attention mask: padding is on the right, where no token attends to it.

    Attributes:
        input_ids: int64 ``[B, T]``, right-padded.
        position_ids: int64 ``[B, T]``, from 0 at the start of every row, by which a model knows
            that rows of a sequence must not see each other; padding continues the count.
        labels: int64 ``[B, T]``, -100 wherever there is no loss, as at the first token of every
            row; not shifted.
        source_ids: int64 ``[B, T]``, every token's source by its position in ``corpus.sources``.
        target_places: int64 ``[N]``, positions of the tokens with a label, counted over all rows;
            found here, because a device would have to wait for their number.
        window_target_tokens: ``[]``, target tokens of the whole accumulation window; infinite in a
            batch that only keeps its rank in step, and has no gradient by it.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    source_ids: Tensor
    target_places: Tensor
    window_target_tokens: Tensor


def collate(corpus: Corpus, bins: Sequence[Bin], window_target_tokens: float) -> Batch:
    """Lay the rows of each bin end to end, and pad on the right to the longest bin."""
    source_ids = {name: index for index, name in enumerate(corpus.sources)}
    shape = (len(bins), max(bin_length(corpus, refs) for refs in bins))
    ids = np.full(shape, corpus.renderer.pad_token_id)
    labels = np.full(shape, IGNORED)
    positions, sources = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, refs in enumerate(bins):
        start = 0
        for ref in refs:
            row = corpus.loaded[ref.source].rows[ref.index]
            end = start + len(row.input_ids)
            ids[place, start:end] = row.input_ids
            for first, last in row.spans:
                # The first token has no predecessor in its own row, so it is not a target.
                first = max(first, 1)
                labels[place, start + first : start + last] = row.input_ids[first:last]
            # To the end: padding belongs to the last row, so that nothing starts with it.
            positions[place, start:] = np.arange(shape[1] - start)
            sources[place, start:] = source_ids[ref.source]
            start = end
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        source_ids=torch.from_numpy(sources),
        target_places=torch.from_numpy(np.flatnonzero(labels != IGNORED)),
        window_target_tokens=torch.tensor(window_target_tokens),
    )


def bin_length(corpus: Corpus, refs: Bin) -> int:
    """Return the tokens of a bin, without padding."""
    return sum(int(corpus.loaded[ref.source].num_tokens[ref.index]) for ref in refs)


def merged(corpus: Corpus, bins: Sequence[Bin]) -> list[Bin]:
    """Lay the sequences of a micro-batch end to end, where that saves padding."""
    packed = pack_evenly([bin_length(corpus, refs) for refs in bins], corpus.max_length)
    return [[ref for place in places for ref in bins[place]] for places in packed]


def target_tokens(corpus: Corpus, bins: Sequence[Bin]) -> int:
    """Return the target tokens of several bins."""
    return sum(
        int(corpus.loaded[ref.source].num_target_tokens[ref.index])
        for ref in chain.from_iterable(bins)
    )


class MicroBatches(Dataset[Batch]):
    """The micro-batches of one pass, in the order of its plan.

    Several ranks share the micro-batches that one device would train on, so that tokens are even
    over a window. All ranks have as many in each window, or some would wait for the others: where
    there are too few, a rank repeats the window's shortest sequence, and its gradient counts zero.

    Args:
        corpus: The tokenised sources.
        windows: The pass.
        micro_batch_size: Training sequences per forward pass.
        rank: Which of the ranks this is.
        num_ranks: Number of ranks.
        padding_free: Lay the rows of a micro-batch end to end, where that saves padding.
    """

    def __init__(
        self,
        corpus: Corpus,
        windows: Sequence[Window],
        micro_batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        padding_free: bool = False,
    ) -> None:
        self.corpus = corpus
        self.micro_batches: list[tuple[list[Bin], float]] = []
        for window in windows:
            # A step's gradient does not depend on how it is cut into micro-batches; padding does.
            bins = sorted(window, key=lambda refs: -bin_length(corpus, refs))
            window_target_tokens = target_tokens(corpus, window)
            parts = [
                bins[start : start + micro_batch_size]
                for start in range(0, len(bins), micro_batch_size)
            ]
            if padding_free:
                parts = [merged(corpus, part) for part in parts]
            costs = [len(part) * max(bin_length(corpus, refs) for refs in part) for part in parts]
            dealt = share_out(costs, num_ranks)
            mine = [(parts[place], window_target_tokens) for place in dealt[rank]]
            missing = max(map(len, dealt)) - len(mine)
            self.micro_batches += [*mine, *([([bins[-1]], math.inf)] * missing)]

    def __len__(self) -> int:
        return len(self.micro_batches)

    @override
    def __getitem__(self, index: int) -> Batch:
        return collate(self.corpus, *self.micro_batches[index])


class HeldOutBatches(Dataset[Batch]):
    """Batches of the rows of one source that no stage trains on, longest first."""

    def __init__(self, corpus: Corpus, source: str, batch_size: int) -> None:
        self.corpus = corpus
        self.source = source
        loaded = corpus.loaded[source]
        held_out = [RowRef(source, index) for index in loaded.ranked[: loaded.val_rows]]
        lengths = [bin_length(corpus, [ref]) for ref in held_out]
        self.batches = [
            [[held_out[place]] for place in places]
            for places in batches_longest_first(lengths, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    @override
    def __getitem__(self, index: int) -> Batch:
        bins = self.batches[index]
        return collate(self.corpus, bins, target_tokens(self.corpus, bins))


class PassSampler(Sampler[int]):
    """Indices in order from ``start``.

    Its length is that of the whole pass, so that Lightning recognizes the last batch.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.start = 0

    def __len__(self) -> int:
        return self.length

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.length))


class ResumableLoader(DataLoader[Batch]):
    """A loader over a planned pass that resumes after the last batch handed out.

    Lightning keeps its ``state_dict`` in the checkpoint and gives it back before the first batch.
    """

    def __init__(self, dataset: MicroBatches, num_workers: int) -> None:
        self.pass_sampler = PassSampler(len(dataset))
        self.position = 0
        super().__init__(
            dataset,
            batch_size=None,
            sampler=self.pass_sampler,
            num_workers=num_workers,
            worker_init_fn=_ignore_signals,
            # Its own, or every pass would draw a seed from the random state of the training.
            generator=torch.Generator(),
        )

    @override
    def __iter__(self) -> Any:
        self.position = self.pass_sampler.start
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the pass have been handed out."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume after the batches that had been handed out."""
        # The last window of a pass may be short, whose batches another number of ranks counts full.
        self.position = min(state_dict["position"], len(self.pass_sampler))
        self.pass_sampler.start = self.position


def check_shared_memory() -> None:
    """Check that loader processes can be started and hand over batches.

    Raises:
        RequestError: If there is no shared memory.
    """
    try:
        multiprocessing.Semaphore()
        torch.zeros(1).share_memory_()
        shared = Path("/dev/shm")
        if shared.exists() and shutil.disk_usage(shared).free < _SHARED_BYTES:
            raise OSError(f"less than {_SHARED_BYTES} bytes are free")
    except (OSError, RuntimeError, ImportError) as fault:
        raise RequestError(
            f"data.num_workers: loader processes need shared memory, /dev/shm ({fault}). Set it to "
            "0, or give the container some (docker run --shm-size 1g)."
        ) from fault


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the parent, which ends its loaders; so do signals to a group."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
