import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.data.tokenized_row import IGNORED, TokenizedRow
from sft_lab.errors import RequestError
from sft_lab.training.batches import (
    Batch,
    HeldOutBatches,
    MicroBatches,
    ResumableLoader,
    check_shared_memory,
    collate,
)
from sft_lab.training.order import RowRef
from sft_lab.training.plan import Window


@pytest.fixture
def corpus(tiny_base: Path, four_rows: Path) -> Corpus:
    """Two sources of the same four rows, of 18, 17, 16 and 15 tokens, 3 of them targets."""
    source = Source(str(four_rows))
    corpus = Corpus({"code": source, "math": source}, str(tiny_base))
    corpus.load(["code", "math"])
    return corpus


WINDOWS = [
    [[RowRef("math", 3)], [RowRef("code", 0)], [RowRef("math", 1)]],
    [[RowRef("code", 2)]],
]
PACKED = [
    [[RowRef("math", 3), RowRef("code", 0), RowRef("math", 0)], [RowRef("math", 1)]],
    [[RowRef("code", 1), RowRef("math", 2)], [RowRef("code", 3), RowRef("code", 2)]],
    [[RowRef("code", 2)]],
]


def test_micro_batches_pad_on_the_right_and_know_their_window(corpus: Corpus) -> None:
    batches = MicroBatches(corpus, WINDOWS, micro_batch_size=2)
    assert len(batches) == 3
    first, second, third = (batches[index] for index in range(3))
    assert {key: (value.shape, value.dtype) for key, value in first.items()} == {
        "input_ids": ((2, 18), torch.int64),
        "position_ids": ((2, 18), torch.int64),
        "labels": ((2, 18), torch.int64),
        "source_ids": ((2, 18), torch.int64),
        "target_places": ((6,), torch.int64),
        "window_target_tokens": ((), torch.int64),
    }
    # Rows of a step go by length, so that those of a micro-batch are alike: 18, 17, then 15.
    long, middle = corpus.loaded["code"].rows[0], corpus.loaded["math"].rows[1]
    pad = corpus.renderer.pad_token_id
    assert first["input_ids"].tolist() == [list(long.input_ids), [*middle.input_ids, pad]]
    assert first["position_ids"].tolist() == [list(range(18))] * 2  # padding continues the count
    assert first["labels"].tolist() == [long.labels, [*middle.labels, IGNORED]]
    # The last three of each row, at 15 and 14; the second row begins at 18.
    assert first["target_places"].tolist() == [15, 16, 17, 32, 33, 34]
    # Code is the first of the sources, math the next.
    assert first["source_ids"].tolist() == [[0] * 18, [1] * 18]
    assert second["input_ids"].tolist() == [list(corpus.loaded["math"].rows[3].input_ids)]
    # Three rows with two letters and the end token each; the window's sum stands in each part.
    assert [int(b["window_target_tokens"]) for b in (first, second, third)] == [9, 9, 3]
    assert [b["input_ids"].shape for b in (second, third)] == [(1, 15), (1, 16)]


def test_packed_rows_lie_end_to_end(corpus: Corpus) -> None:
    (batch, *_) = MicroBatches(corpus, PACKED, micro_batch_size=2)
    pad = corpus.renderer.pad_token_id
    rows = [corpus.loaded[source].rows[i] for source, i in (("math", 3), ("code", 0), ("math", 0))]
    short = corpus.loaded["math"].rows[1]
    assert batch["input_ids"].tolist() == [
        [token for row in rows for token in row.input_ids],
        [*short.input_ids, *[pad] * 34],
    ]
    assert batch["position_ids"].tolist() == [
        [*range(15), *range(18), *range(18)],
        list(range(51)),
    ]
    assert batch["labels"].tolist() == [
        [label for row in rows for label in row.labels],
        [*short.labels, *[IGNORED] * 34],
    ]
    assert batch["source_ids"].tolist() == [[1] * 15 + [0] * 18 + [1] * 18, [1] * 51]
    assert int(batch["window_target_tokens"]) == 12  # four rows, three each


def whole_rows(*lengths: int) -> Any:
    """Return a corpus of one source, rows of these lengths that are targets but for the first."""
    rows = []
    for length in lengths:
        ids = np.arange(7, 7 + length, dtype=np.int32)
        ids.flags.writeable = False  # as in a memory-mapped file
        rows.append(TokenizedRow(ids, ((0, length),)))
    loaded = SimpleNamespace(
        rows=rows, num_tokens=np.array(lengths), num_target_tokens=np.array(lengths) - 1
    )
    renderer = SimpleNamespace(pad_token_id=0)
    return SimpleNamespace(
        sources={"s": None}, loaded={"s": loaded}, renderer=renderer, max_length=2048
    )


def test_padding_free_micro_batches_are_packed_into_sequences_of_similar_length() -> None:
    corpus = whole_rows(4, 9, 2, 5, 3, 6)
    window = [[RowRef("s", index)] for index in range(6)]
    (batch,) = MicroBatches(corpus, [window], micro_batch_size=6, padding_free=True)
    # Three sequences of 11, where padding to the longest row takes six of 9; two would be of 15.
    assert batch["position_ids"].tolist() == [
        [*range(9), *range(2)],
        [*range(6), *range(5)],  # of 6 and 3 tokens; padding continues the count
        [*range(5), *range(6)],
    ]
    assert batch["labels"][1].tolist() == [IGNORED, *range(8, 13), IGNORED, 8, 9, *[IGNORED] * 2]
    assert len(batch["target_places"]) == batch["window_target_tokens"] == 29 - 6
    corpus.max_length = 10
    (batch,) = MicroBatches(corpus, [window], micro_batch_size=6, padding_free=True)
    assert batch["input_ids"].shape == (4, 9)


def test_the_first_token_of_a_row_is_no_target() -> None:
    corpus = whole_rows(3, 3)
    batch = collate(corpus, [[RowRef("s", 0), RowRef("s", 1)]], window_target_tokens=4)
    # Else the 9 before it would learn to go on with the 7 of another row.
    assert batch["labels"].tolist() == [[IGNORED, 8, 9, IGNORED, 8, 9]]
    assert int((batch["labels"][:, 1:] != IGNORED).sum()) == 4


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("windows", [WINDOWS, PACKED], ids=["row_by_row", "packed"])
def test_the_loader_continues_exactly_after_its_saved_position(
    corpus: Corpus, windows: list[Window], padding_free: bool
) -> None:
    dataset = MicroBatches(corpus, windows, micro_batch_size=1, padding_free=padding_free)
    sequences = sum(len(window) for window in windows)
    whole = [batch["input_ids"].tolist() for batch in ResumableLoader(dataset, 0)]
    interrupted = ResumableLoader(dataset, 0)
    batches = iter(interrupted)
    next(batches), next(batches)
    state = interrupted.state_dict()
    resumed = ResumableLoader(dataset, 0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state == {"position": 2}  # saved again before a batch was read
    assert [batch["input_ids"].tolist() for batch in resumed] == whole[2:]
    assert resumed.state_dict() == {"position": sequences}
    assert len(resumed) == sequences  # of the whole pass: by it Lightning knows the last batch


def test_workers_that_read_ahead_do_not_move_the_position(corpus: Corpus) -> None:
    loader = ResumableLoader(MicroBatches(corpus, WINDOWS, micro_batch_size=1), num_workers=1)
    batches = iter(loader)
    first = next(batches)
    assert loader.state_dict() == {"position": 1}
    assert first["input_ids"].tolist() == [list(corpus.loaded["code"].rows[0].input_ids)]
    del batches


def test_loaders_leave_the_random_state_alone(corpus: Corpus, tiny_base: Path) -> None:
    dataset = MicroBatches(corpus, WINDOWS, micro_batch_size=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(ResumableLoader(dataset, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_batches_hold_only_held_out_rows(tiny_base: Path, four_rows: Path) -> None:
    source = Source(str(four_rows))
    corpus = Corpus({"code": source, "math": source}, str(tiny_base), val_rows=3)
    corpus.load(["math"])
    batches = list(HeldOutBatches(corpus, "math", batch_size=2))
    held_out = sorted(corpus.loaded["math"].held_out, key=lambda row: -len(row.input_ids))
    ids = [ids for batch in batches for ids in batch["input_ids"].tolist()]
    pad = corpus.renderer.pad_token_id
    assert ids[0] == list(held_out[0].input_ids)
    assert ids[1][: len(held_out[1].input_ids)] == list(held_out[1].input_ids)
    assert set(ids[1][len(held_out[1].input_ids) :]) <= {pad}
    assert ids[2] == list(held_out[2].input_ids)
    assert {int(source) for batch in batches for source in batch["source_ids"].flatten()} == {1}
    assert [int(batch["window_target_tokens"]) for batch in batches] == [6, 3]


def test_a_signal_to_the_whole_group_leaves_loading_to_its_parent(corpus: Corpus) -> None:
    windows = [[[RowRef("math", n)]] for n in range(4)]
    before = {child.pid for child in psutil.Process().children()}
    batches = iter(ResumableLoader(MicroBatches(corpus, windows, 1), num_workers=1))
    found = [next(batches)]
    (worker,) = (child for child in psutil.Process().children() if child.pid not in before)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    found += batches
    assert len(found) == 4


def test_loader_processes_without_shared_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode")

    check_shared_memory()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
        with pytest.raises(RequestError, match=r"data\.num_workers: .* bytes are free"):
            check_shared_memory()
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(RequestError, match=r"data\.num_workers: .* /dev/shm \(unable.*Set it to 0"):
        check_shared_memory()


@pytest.mark.parametrize("windows", [WINDOWS, PACKED])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_micro_batches_of_one_device(
    corpus: Corpus, windows: list[Window], num_ranks: int
) -> None:
    def batches(rank: int, of: int) -> list[Batch]:
        found = MicroBatches(corpus, windows, 1, rank, of)
        return [found[index] for index in range(len(found))]

    ranks = [batches(rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(found) for found in ranks}) == 1
    counting = [b for found in ranks for b in found if b["window_target_tokens"].isfinite()]
    assert sorted(map(str, counting)) == sorted(map(str, batches(0, 1)))


def test_ranks_get_even_tokens_of_a_window(corpus: Corpus) -> None:
    window = [[RowRef("code", place)] for place in range(4)]  # of 18, 17, 16 and 15 tokens
    sizes = [
        [len(batch["input_ids"][0]) for batch in (part[0], part[1])]
        for part in (MicroBatches(corpus, [window], 1, rank, 2) for rank in range(2))
    ]
    assert sizes == [[18, 15], [17, 16]]
