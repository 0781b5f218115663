import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import chat

from sft_lab.data import render_pool
from sft_lab.data.conversation import Conversation
from sft_lab.data.intake import Sample
from sft_lab.data.render_pool import render
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenizer import load_tokenizer


def sample(number: int) -> Sample:
    answer = "<end>" if number == 50 else "y" * (number % 7)
    messages = tuple(chat(f"{number}?", answer)["messages"])
    return Sample(f"line {number}", str(number), Conversation(messages), ())


@pytest.fixture
def renderer(tiny_base: Path) -> Renderer:
    return Renderer(load_tokenizer(str(tiny_base)), None)


@pytest.fixture
def in_three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_pool, "_CHUNK_ROWS", 10)
    monkeypatch.setattr(render_pool, "_LOCAL_CHUNKS", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("in_three_processes")
def test_several_processes_give_the_rows_of_one_in_order(renderer: Renderer) -> None:
    samples = [sample(number) for number in range(115)]
    chunks = list(render(samples, renderer, 12, "drop"))
    assert [s for chunk, _ in chunks for s in chunk] == samples
    alone = renderer.rows([s.conversation for s in samples], 12, "drop")
    rows = [row for _, some in chunks for row in some]
    assert list(map(repr, rows)) == list(map(repr, alone))  # errors are equal by text
    assert any("the special token <end>" in repr(row) for row in rows)
    assert any("longer than max_length 12" in repr(row) for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("in_three_processes")
def test_samples_are_read_only_a_few_chunks_ahead(renderer: Renderer) -> None:
    read = 0

    def samples() -> Iterator[Sample]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield sample(number)

    chunks = render(samples(), renderer, 100, "drop")
    for _ in range(5):
        next(chunks)
    assert read == 20 + 10 * (3 + 2 * 3)  # local chunks, then those taken and queued
    chunks.close()  # type: ignore[attr-defined]
