import gzip
import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hub_cache import HubCache

from sft_lab import paths as hub
from sft_lab.data.contamination import ItemIndex
from sft_lab.data.intake import samples
from sft_lab.data.intake_report import IntakeReport
from sft_lab.data.row_files import RawRow
from sft_lab.data.sources import Source, check_source
from sft_lab.errors import RequestError

ROWS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows(name: str, source: Source) -> Iterator[RawRow]:
    return source.row_files(name).rows()


def prompts(path: Path, **settings: Any) -> list[str]:
    """Return the first message of every row."""
    found = samples(
        "math",
        Source(str(path), **settings),
        ItemIndex({}),
        drop_contaminated=False,
        report=IntakeReport(),
    )
    return [sample.conversation.messages[0]["content"] for sample in found]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # mtime=0: otherwise the current time would be part of the tests' names.
        ("rows.jsonl", LINES.encode()),
        ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()),
        ("windows.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode()),
        ("gaps.jsonl", ("\n" + LINES.replace("\n", "\n\n").rstrip()).encode()),
    ],
)
def test_json_files_are_read_in_file_order(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts(tmp_path / name) == ["q0", "q1", "q2"]


def test_long_rows_of_a_small_parquet_file_are_not_all_decoded_at_once(tmp_path: Path) -> None:
    size = 2**18
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1024), ["x" * size])
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": repeated}), tmp_path / "rows.parquet", store_schema=False
    )
    assert (tmp_path / "rows.parquet").stat().st_size < 2**20
    before = pyarrow.total_allocated_bytes()
    found = iter(rows("math", Source(str(tmp_path / "rows.parquet"))))
    assert len(next(found)[1]["prompt"]) == size
    assert pyarrow.total_allocated_bytes() - before < 150 * 2**20  # all of them are 256 MiB
    assert sum(1 for _ in found) == 1023


def test_parquet_files_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    table = pyarrow.Table.from_pylist([{"messages": turns}, {"messages": turns[:1]}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert list(rows("math", Source(str(tmp_path / "rows.parquet")))) == [
        ("row 1", {"messages": turns}, {"messages": turns}),
        ("row 2", {"messages": turns[:1]}, {"messages": turns[:1]}),
    ]


def test_rows_are_streamed(tmp_path: Path) -> None:
    # If the file were read whole, the broken line would fail before the first row.
    (tmp_path / "rows.jsonl").write_text(LINES + "{broken\n")
    stream = rows("math", Source(str(tmp_path / "rows.jsonl")))
    assert [next(stream).values for _ in range(3)] == ROWS
    with pytest.raises(RequestError, match="line 4 is not JSON"):
        next(stream)


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
        (
            "a.jsonl",
            LINES + '{"n": ' + "9" * 5000 + "}",
            r"line 4 cannot be parsed as JSON: Exc",
        ),
        ("a.jsonl", LINES + "[1, 2]\n", r"a\.jsonl, line 4 holds '\[1, 2\]', expected an object"),
        ("a.json", '["x"]', r"a\.json, row 1 holds 'x', expected an object"),
        ("a.json", '{"question": "q"}', r"holds one dict, expected a list of rows.* \.jsonl"),
        (
            "a.json",
            LINES,
            r"a\.json is not JSON: Extra data at char.* every line is a row, name it",
        ),
        (
            "a.jsonl",
            '{"question": "q"},\n',
            r"line 1 is not JSON: .* Remove the comma after the row",
        ),
        (
            "a.json",
            '[{"question": "q"},\n]',
            r"is not JSON: .* Remove the comma before the closing",
        ),
        ("a.json", "[" * 100_000, r"a\.json cannot be parsed as JSON: "),
        ("a.json", "", r"corpus\.sources\.math\.path: .*a\.json holds no rows"),
        ("a.json", "[]", r"a\.json holds no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no rows"),
        ("a.txt", LINES, r"a\.txt ends in none of \.json, \.jsonl"),
        ("a.jsonl", '{"text": "x", "b": 1}', r"line 1 has the keys b, text.*math\.format, one of"),
        ("a.jsonl.gz", LINES, r"cannot be read: Not a gzipped file"),
        (
            "a.parquet",
            "version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer; download",
        ),
        ("a.parquet", LINES, r"a\.parquet cannot be read as Parquet: "),
    ],
)
def test_a_file_that_cannot_be_read_names_place_and_fix(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        prompts(tmp_path / name)


def test_a_line_of_any_length_is_not_read_whole(tmp_path: Path) -> None:
    # 100 kB on disk hold a line of 96 MiB, of which 64 are read.
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as packed:
        packed.write(LINES.encode() + b'{"question": "')
        for _ in range(96):
            packed.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"a\.jsonl\.gz, line 4 is longer than 64 MiB; a line"):
        prompts(tmp_path / "a.jsonl.gz")
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_damaged_files_are_request_errors(tmp_path: Path) -> None:
    packed = gzip.compress(LINES.encode() * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(RequestError, match="cannot be read: Compressed file ended"):
        prompts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(packed[:12] + b"\xff\xff\xff" + packed[15:])
    with pytest.raises(RequestError, match=r"bad\.jsonl\.gz cannot be read: Error -3"):
        prompts(tmp_path / "bad.jsonl.gz")
    (tmp_path / "latin.jsonl").write_bytes(LINES.encode() + '{"question": "é"}'.encode("latin-1"))
    with pytest.raises(RequestError, match=r"latin\.jsonl, line 4 is not UTF-8 text: invalid cont"):
        prompts(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    "path", ["a" * 300 + ".jsonl", "/no/such/rows", "../no_rows", "rows.jsonl", "~/x.json", "a b/c"]
)
def test_a_missing_file_is_not_searched_on_the_hub(path: str) -> None:
    with pytest.raises(RequestError, match=r"math\.path: no such file: "):
        prompts(Path(path))


def test_a_folder_is_not_a_source(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder without files that end in"):
        prompts(tmp_path)


def test_a_named_format_wins_over_detection(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "prompt": "p", "completion": "c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert prompts(tmp_path / "a.jsonl") == ["q"]
    assert prompts(tmp_path / "a.jsonl", format="prompt_completion") == ["p"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "correct =="}, r"^corpus\.sources\.math: .*correct =="),
        ({"exclude": ["(a"]}, r"^corpus\.sources\.math: .*\(a"),
    ],
)
def test_bad_settings_are_named_before_anything_is_read(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        check_source("math", Source("/nowhere.jsonl", **settings))


def test_a_source_has_the_digest_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    expected = hashlib.sha256(LINES.encode()).hexdigest()
    assert Source(str(tmp_path / "a.jsonl")).row_files("math").digest() == expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub unreachable; the check for it is repeated afterwards."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "settle_offline", hub.settle_offline.__wrapped__)
    monkeypatch.setattr("sft_lab.hub.settle_offline", hub.settle_offline)


@pytest.mark.usefixtures("offline")
def test_a_hub_name_without_a_network_fails_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(
        RequestError,
        match=r"math\.path: nobody/nothing is not a local file, and the hub does not answer; its "
        r"cache does not hold it\. Name a JSON, JSONL or Parquet file of its rows, or go online",
    ):
        prompts(Path("nobody/nothing"))
    assert time.monotonic() - started < 5  # the libraries' own retries take 23 s and more


def test_a_hub_name_is_read_from_the_hub_s_cache(hub_cache: HubCache) -> None:
    hub_cache.add_rows("some/rows", ROWS, subset="main", splits={"test": slice(1, 3)})
    assert prompts(Path("some/rows"), subset="main", split="test") == ["q1", "q2"]
    hub_cache.add_json("more/rows", "b.json", ROWS)
    old = hub_cache.add_json("more/rows", "a.jsonl", ROWS[:1])
    hub_cache.add_json("more/rows", "a.jsonl", ROWS)
    assert prompts(Path("more/rows"), data_files="a.jsonl") == ["q0", "q1", "q2"]
    assert prompts(Path("more/rows"), revision=old) == ["q0"]


def test_the_hub_is_asked_for_a_source_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, **settings: str) -> list[dict[str, str]]:
        asked.append((names, settings))
        return ROWS

    answer_as_the_hub(monkeypatch, lambda: SimpleNamespace(sha="5a" * 20))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source("openai/gsm8k", subset="main", data_files="a.jsonl", split="test")
    assert [row.values for row in rows("math", source)] == ROWS
    settings = {"data_files": "a.jsonl", "split": "test", "revision": None}
    assert asked == [(("openai/gsm8k", "main"), settings)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("RevisionNotFoundError", r"math\.revision: a/b has no revision 'v9' on the hub; name a"),
        ("RepositoryNotFoundError", r"math\.path: a/b .* the hub has no such name, or only for t"),
        (
            "GatedRepoError",
            r"math\.path: a/b is gated on the hub: accept its terms .*hf auth login",
        ),
    ],
)
def test_a_name_that_the_hub_refuses_says_the_fix(
    monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    import httpx2
    from huggingface_hub import errors

    def refuse() -> None:
        response = httpx2.Response(404, request=httpx2.Request("GET", "http://hub/a/b"))
        raise getattr(errors, fault)("refused", response=response)

    answer_as_the_hub(monkeypatch, refuse)
    with pytest.raises(RequestError, match=message):
        prompts(Path("a/b"), revision="v9")


def answer_as_the_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr("sft_lab.hub.settle_offline", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: answer())
