from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lab.data.batches import (
    HeldOutBatches,
    MicroBatches,
    PromptBatches,
    ResumableLoader,
    eval_loader,
)
from sft_lab.data.corpus import Corpus
from sft_lab.data.plan import RowRef
from sft_lab.data.rendering import IGNORED
from sft_lab.data.sources import Source
from sft_lab.evaluation.world import WorldMath


@pytest.fixture
def corpus(tiny_base: Path, four_rows: Path) -> Corpus:
    """Two sources of the same four rows, of 18, 17, 16 and 15 tokens, 3 of them targets."""
    source = Source(str(four_rows))
    corpus = Corpus({"code": source, "math": source}, str(tiny_base))
    corpus.load(["code", "math"])
    return corpus


WINDOWS = [
    [RowRef("math", 3), RowRef("code", 0), RowRef("math", 1)],
    [RowRef("code", 2)],
]


def test_micro_batches_pad_on_the_right_and_know_their_window(corpus: Corpus) -> None:
    batches = MicroBatches(corpus, WINDOWS, micro_batch_size=2)
    assert len(batches) == 3
    first, second, third = (batches[index] for index in range(3))
    assert {key: (value.shape, value.dtype) for key, value in first.items()} == {
        "input_ids": ((2, 18), torch.int64),
        "attention_mask": ((2, 18), torch.int64),
        "labels": ((2, 18), torch.int64),
        "source_ids": ((2,), torch.int64),
        "window_target_tokens": ((), torch.int64),
    }
    short, long = corpus.loaded["math"].rows[3], corpus.loaded["code"].rows[0]
    pad = corpus.renderer.pad_token_id
    assert first["input_ids"].tolist() == [short.input_ids + [pad] * 3, long.input_ids]
    assert first["attention_mask"].tolist() == [[1] * 15 + [0] * 3, [1] * 18]
    assert first["labels"].tolist() == [short.labels + [IGNORED] * 3, long.labels]
    assert first["source_ids"].tolist() == [1, 0]  # code is the first of the sources, math the next
    # Three rows with two letters and the end token each; the window's sum stands in each part.
    assert [int(b["window_target_tokens"]) for b in (first, second, third)] == [9, 9, 3]
    assert [b["input_ids"].shape for b in (second, third)] == [(1, 17), (1, 16)]


def test_the_loader_goes_on_exactly_behind_its_saved_position(corpus: Corpus) -> None:
    dataset = MicroBatches(corpus, WINDOWS, micro_batch_size=1)
    whole = [batch["input_ids"].tolist() for batch in ResumableLoader(dataset, 0)]
    interrupted = ResumableLoader(dataset, 0)
    batches = iter(interrupted)
    next(batches), next(batches)
    state = interrupted.state_dict()
    resumed = ResumableLoader(dataset, 0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state == {"position": 2}  # saved again before a batch was read
    assert [batch["input_ids"].tolist() for batch in resumed] == whole[2:]
    assert resumed.state_dict() == {"position": 4}
    assert len(resumed) == 4  # of the whole pass: by it Lightning knows the last batch


def test_workers_that_read_ahead_do_not_move_the_position(corpus: Corpus) -> None:
    loader = ResumableLoader(MicroBatches(corpus, WINDOWS, micro_batch_size=1), num_workers=1)
    batches = iter(loader)
    first = next(batches)
    assert loader.state_dict() == {"position": 1}
    assert first["input_ids"].tolist() == [corpus.loaded["math"].rows[3].input_ids]
    del batches


def test_loaders_leave_the_random_state_alone(corpus: Corpus, tiny_base: Path) -> None:
    dataset = MicroBatches(corpus, WINDOWS, micro_batch_size=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(ResumableLoader(dataset, 0))
    list(eval_loader(dataset))
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_batches_hold_only_held_out_rows(tiny_base: Path, four_rows: Path) -> None:
    source = Source(str(four_rows))
    corpus = Corpus({"code": source, "math": source}, str(tiny_base), val_rows=3)
    corpus.load(["math"])
    batches = list(eval_loader(HeldOutBatches(corpus, "math", batch_size=2)))
    held_out = sorted(corpus.loaded["math"].held_out, key=lambda row: -len(row.input_ids))
    ids: list[Any] = [
        ids[:length].tolist()
        for batch in batches
        for ids, length in zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)
    ]
    assert ids == [row.input_ids for row in held_out]
    assert [batch["source_ids"].tolist() for batch in batches] == [[1, 1], [1]]
    assert [int(batch["window_target_tokens"]) for batch in batches] == [6, 3]


def test_prompt_batches_hold_every_item_once(corpus: Corpus, tiny_world: Path) -> None:
    benchmark = WorldMath(str(tiny_world / "data" / "world_math.jsonl"), max_new_tokens=4)
    batches = list(eval_loader(PromptBatches("world_math", benchmark, corpus, batch_size=3)))
    assert [len(batch["prompts"]) for batch in batches] == [3, 1]
    assert sorted(index for batch in batches for index in batch["indices"]) == [0, 1, 2, 3]
    assert {batch["benchmark"] for batch in batches} == {"world_math"}
    item = benchmark.items()[batches[0]["indices"][0]]
    assert batches[0]["prompts"][0] == corpus.renderer.prompt_ids(item.messages)
