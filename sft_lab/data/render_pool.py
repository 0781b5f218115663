"""Render long sources in several processes: templates run in Python, on one core each."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice

from sft_lab.data.conversation import Conversation
from sft_lab.data.intake import Sample
from sft_lab.data.rendering import Rendered, Renderer
from sft_lab.data.tokenized_row import TooLong

_CHUNK_ROWS = 1000
_LOCAL_CHUNKS = 10  # rendered in less time than processes take to start
_MAX_PROCESSES = 8  # as many as this process, which reads and cleans, can keep busy

Chunk = tuple[list[Sample], list[Rendered]]


def render(
    samples: Iterable[Sample], renderer: Renderer, max_length: int, too_long: TooLong
) -> Iterator[Chunk]:
    """Render samples in chunks, in order, as ``Renderer.rows`` does.

    Beyond 10,000 samples this uses as many processes as there are cores, 8 at most. They import
    the main module, so a user's script needs ``if __name__ == "__main__"``.

    Args:
        samples: Samples, read only a few chunks ahead.
        renderer: The renderer; every process gets a copy.
        max_length: Longest row in tokens.
        too_long: See ``Renderer.rows``.

    Yields:
        A chunk of samples, and what each of them makes.
    """
    chunks = _chunks(samples)
    job = _Render(renderer, max_length, too_long)
    for chunk in islice(chunks, _LOCAL_CHUNKS):
        yield chunk, job(_conversations(chunk))
    if (following := next(chunks, None)) is None:
        return
    rest = chain([following], chunks)
    if (processes := _num_processes()) == 1:
        yield from ((chunk, job(_conversations(chunk))) for chunk in rest)
    else:
        yield from _in_processes(rest, job, processes)


def _in_processes(
    chunks: Iterable[list[Sample]], job: "_Render", processes: int
) -> Iterator[Chunk]:
    # Not forked: threads of torch and tokenizers may hold locks that a copy never releases.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (job,))
    waiting: deque[tuple[list[Sample], Future[list[Rendered]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_render, _conversations(chunk))))
            if len(waiting) > 2 * processes:
                first, rows = waiting.popleft()
                yield first, rows.result()
        while waiting:
            first, rows = waiting.popleft()
            yield first, rows.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Render:
    """``Renderer.rows`` with its limits, as a picklable callable."""

    def __init__(self, renderer: Renderer, max_length: int, too_long: TooLong) -> None:
        self.renderer = renderer
        self.max_length = max_length
        self.too_long: TooLong = too_long

    def __call__(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        return self.renderer.rows(conversations, self.max_length, self.too_long)


_job: _Render | None = None  # set in the processes of the pool


def _start(job: _Render) -> None:
    global _job
    _job = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process


def _render(conversations: Sequence[Conversation]) -> list[Rendered]:
    assert _job is not None
    return _job(conversations)


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while chunk := list(islice(remaining, _CHUNK_ROWS)):
        yield chunk


def _conversations(chunk: Sequence[Sample]) -> list[Conversation]:
    return [sample.conversation for sample in chunk]


def _num_processes() -> int:
    """Return the number of processes to use; a daemon, such as a loader worker, may start none."""
    if multiprocessing.current_process().daemon:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _MAX_PROCESSES)
