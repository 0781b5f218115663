import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_lab.data.token_store import TokenStore, TokenWriter
from sft_lab.data.tokenized_row import TokenizedRow

ROWS = [
    TokenizedRow([5, 6, 7, 8], ((1, 3),)),
    TokenizedRow([9], ((0, 1),), cut=True),
    TokenizedRow([1, 2, 3, 4, 5, 6], ((1, 2), (4, 6))),
]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """Return a store of three rows in two batches."""
    with TokenWriter(tmp_path / "tokens.arrow") as writer:
        writer.add(["a", "b"], ROWS[:2])
        writer.add(["c"], ROWS[2:])
    return TokenStore(tmp_path / "tokens.arrow")


def test_rows_are_read_as_written(store: TokenStore) -> None:
    assert len(store) == 3
    for index in (2, 0, 1, -1):
        row, expected = store[index], ROWS[index]
        assert list(row.input_ids) == list(expected.input_ids)
        assert (row.spans, row.cut) == (expected.spans, expected.cut)
    assert [row.cut for row in store[1:]] == [True, False]
    assert [list(row.input_ids) for row in store] == [list(row.input_ids) for row in ROWS]


def test_lengths_are_known_without_reading_rows(store: TokenStore) -> None:
    assert store.num_tokens.tolist() == [4, 1, 6]
    assert store.num_target_tokens.tolist() == [2, 0, 3]  # a first token is never predicted
    assert store.sample_ids == ["a", "b", "c"]


def test_tokens_are_views_of_the_mapped_file(store: TokenStore) -> None:
    ids = store[0].input_ids
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int32
    assert not ids.flags.owndata


def test_reading_imports_no_pandas(store: TokenStore, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sft_lab.data.token_store import TokenStore; "
        "store = TokenStore(Path(sys.argv[1])); print(list(store), 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tokens.arrow")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.endswith("False\n")


def test_a_row_beyond_the_end_is_an_index_error(store: TokenStore) -> None:
    with pytest.raises(IndexError, match="row 3 of 3"):
        store[3]


def test_a_store_may_be_empty(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "tokens.arrow"):
        pass
    store = TokenStore(tmp_path / "tokens.arrow")
    assert (len(store), list(store.num_tokens), store.sample_ids) == (0, [], [])
