import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sft_lab.data import hub
from sft_lab.data.sources import Source, read_source, sample_digest
from sft_lab.errors import RequestError

ROWS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def prompts(path: Path, **settings: Any) -> list[str]:
    read = read_source("math", Source(str(path), **settings))
    return [conversation[0]["content"] for conversation in read.conversations]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES.encode()),
        ("rows.jsonl.gz", gzip.compress(LINES.encode())),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()),
        ("windows.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode()),
        ("gaps.jsonl", ("\n" + LINES.replace("\n", "\n\n").rstrip()).encode()),
    ],
)
def test_json_files_are_read_in_file_order(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts(tmp_path / name) == ["q0", "q1", "q2"]


def test_parquet_files_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    table = pyarrow.Table.from_pylist([{"messages": turns}, {"messages": turns[:1]}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    read = read_source("math", Source(str(tmp_path / "rows.parquet"), max_dropped=0.5))
    assert read.conversations == [tuple(turns)]
    assert read.dropped == {"no user turn followed by an assistant turn": 1}


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    row = {"question": "a\u2028b\u0085c", "answer": "\x0b"}
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({**row, "answer": "x"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert prompts(tmp_path / "rows.jsonl") == ["a\u2028b\u0085c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINES + "{broken\n", r"a\.jsonl, line 4 is not JSON: Expecting property"),
        ("a.jsonl", LINES + "[1, 2]\n", r"a\.jsonl, line 4 holds '\[1, 2\]', expected an object"),
        ("a.json", '["x"]', r"a\.json, row 1 holds 'x', expected an object"),
        ("a.json", '{"question": "q"}', r"holds one dict, expected a list of rows.* \.jsonl"),
        ("a.json", LINES, r"a\.json is not JSON: Extra data"),
        ("a.json", "[" * 100_000, r"a\.json is not JSON"),
        ("a.json", "", r"corpus\.sources\.math\.path: .*a\.json holds no rows"),
        ("a.json", "[]", r"a\.json holds no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no rows"),
        ("a.txt", LINES, r"a\.txt ends in none of \.json, \.jsonl"),
        ("a.jsonl", '{"text": "x", "b": 1}', r"line 1 has the keys b, text.*math\.format, one of"),
        ("a.jsonl.gz", LINES, r"cannot be read: Not a gzipped file"),
        ("a.parquet", LINES, r"a\.parquet cannot be read as Parquet: "),
    ],
)
def test_a_file_that_cannot_be_read_names_place_and_fix(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        prompts(tmp_path / name)


def test_damaged_files_are_request_errors(tmp_path: Path) -> None:
    packed = gzip.compress(LINES.encode() * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(RequestError, match="cannot be read: Compressed file ended"):
        prompts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(packed[:12] + b"\xff\xff\xff" + packed[15:])
    with pytest.raises(RequestError, match=r"bad\.jsonl\.gz cannot be read: Error -3"):
        prompts(tmp_path / "bad.jsonl.gz")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(RequestError, match=r"latin\.jsonl is not UTF-8 text: invalid contin"):
        prompts(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("path", ["/no/such/rows", "../rows", "rows.jsonl", "~/x.json", "a b/c"])
def test_a_missing_file_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(RequestError, match=r"math\.path: there is no file "):
        prompts(Path(path))


def test_a_folder_is_not_a_source(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder; name a file in it"):
        prompts(tmp_path)


def test_dropped_rows_are_counted_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES + '{"question": "q"}\n')
    read = read_source("math", Source(str(tmp_path / "a.jsonl"), max_dropped=0.25))
    assert read.dropped == {"missing key 'answer'": 1}
    assert len(read.conversations) == 3
    assert read.total == 4
    with pytest.raises(RequestError, match=r"1 of 4 rows .* line 4: missing.* from 0\.24"):
        prompts(tmp_path / "a.jsonl", max_dropped=0.24)


def test_a_named_format_wins_over_detection(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "prompt": "p", "completion": "c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert prompts(tmp_path / "a.jsonl") == ["q"]
    assert prompts(tmp_path / "a.jsonl", format="prompt_completion") == ["p"]


def test_a_sample_keeps_its_identity_on_every_machine() -> None:
    # printf '[["user", "é"], ["assistant", "4"]]' | sha256sum
    assert sample_digest(
        ({"role": "user", "content": "é"}, {"role": "assistant", "content": "4"})
    ) == ("84fbf9b4711fb56a516a4b6a9b461ff1280101884eb3b163a7ed92da10f087ba")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub: its address refuses connections, and what is settled is forgotten afterwards."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "settle_offline", hub.settle_offline.__wrapped__)
    monkeypatch.setattr("sft_lab.data.sources.settle_offline", hub.settle_offline)


@pytest.mark.usefixtures("offline")
def test_a_hub_name_without_a_network_fails_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"math\.path: nobody/nothing is no local file, and "):
        prompts(Path("nobody/nothing"))
    assert time.monotonic() - started < 10  # the libraries' own retries take 23 s and more


def test_a_hub_name_is_read_as_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, **settings: str) -> list[dict[str, str]]:
        asked.append((names, settings))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("sft_lab.data.sources.settle_offline", lambda: None)
    source = Source("openai/gsm8k", subset="main", data_files="a.jsonl", split="test")
    assert len(read_source("math", source).conversations) == 3
    assert asked == [(("openai/gsm8k", "main"), {"data_files": "a.jsonl", "split": "test"})]


@pytest.mark.parametrize(
    ("name", "total", "dropped"),
    [
        ("gsm8k/train.jsonl.gz", 7473, {}),
        ("gsm8k_rft/screl_train_use.jsonl.gz", 7473, {}),
        ("gsm8k_rft/rft_phi35mini_681q.jsonl.gz", 2802, {}),
        ("code_alpaca/code_alpaca_2k.json", 2017, {"empty message": 2}),
        ("code_alpaca/new_codealpaca.json.gz", 4535, {}),
        ("sharegpt/dummy_conversation.json", 500, {}),
    ],
)
def test_real_files_are_read_whole(
    shared_data: Callable[[str], Path], name: str, total: int, dropped: dict[str, int]
) -> None:
    read = read_source("real", Source(str(shared_data(name))))
    assert read.total == total
    assert read.dropped == dropped


def test_real_chats_are_dropped_for_the_reasons_they_have(
    shared_data: Callable[[str], Path],
) -> None:
    path = shared_data("sharegpt/sharegpt92k_sample.jsonl.gz")
    expected: Counter[str] = Counter()
    kept_messages = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = json.loads(line)["conversations"]
            # One letter a turn: s, u, a; a capital one has no text.
            shape = "".join(
                {"system": "s", "human": "u", "user": "u"}.get(turn["from"], "a") for turn in turns
            )
            texts = [turn["value"] for turn in turns]
            if shape.startswith("s"):
                shape, texts = shape[1:], texts[1:]
                kept_messages += 1
            first = len(shape) - len(shape.lstrip("a"))
            last = shape.rfind("a") + 1
            shape, texts = shape[first:last], texts[first:last]
            pairs = len(shape) // 2
            empty = next((i for i, text in enumerate(texts) if not text.strip()), len(texts))
            wrong = next((i for i, role in enumerate(shape) if role != "ua"[i % 2]), len(texts))
            if not pairs:
                expected["no user turn followed by an assistant turn"] += 1
            elif wrong < len(texts) and wrong <= empty:
                expected["user and assistant turns do not alternate"] += 1
            elif empty < len(texts):
                expected["empty message"] += 1
            else:
                kept_messages += len(texts)
    read = read_source("general", Source(str(path)))
    assert read.total == 991
    assert read.dropped == expected
    assert sum(map(len, read.conversations)) == kept_messages
