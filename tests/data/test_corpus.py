import errno
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import chat, write_jsonl

from sft_lab.data.corpus import Corpus
from sft_lab.data.hash_rank import hash_rank
from sft_lab.data.sources import Source
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {}}}]


@pytest.fixture
def corpus_of(tiny_base: Path, tmp_path: Path) -> Callable[..., Corpus]:
    """Make a corpus of one source, "math", from pairs of prompt and answer, and load it."""

    def make(
        *pairs: tuple[str, str],
        max_dropped: float = 0.1,
        where: str | None = None,
        **settings: Any,
    ) -> Corpus:
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
        (tmp_path / "math.jsonl").write_text("\n".join(lines))
        source = Source(str(tmp_path / "math.jsonl"), max_dropped=max_dropped, where=where)
        corpus = Corpus({"math": source}, str(tiny_base), **settings)
        corpus.load(["math"])
        return corpus

    return make


def test_rows_keep_file_order_and_know_their_lengths(corpus_of: Callable[..., Corpus]) -> None:
    math = corpus_of(("a", "1"), ("bcd", "22"), ("ef", "333")).loaded["math"]
    # <user>prompt<end><assistant>answer<end>
    assert [len(row.input_ids) for row in math.rows] == [6, 9, 9]
    assert [row.num_target_tokens for row in math.rows] == [2, 3, 4]
    assert math.num_tokens.tolist() == [6, 9, 9]
    assert math.num_target_tokens.tolist() == [2, 3, 4]
    assert not math.report.dropped


def test_too_long_rows_are_dropped_counted_and_logged(
    corpus_of: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sft_lab"):
        math = corpus_of(("a", "1"), ("bcd", "22"), ("", "x"), max_length=6, max_dropped=0.4)
    assert len(math.loaded["math"].rows) == 1
    assert math.loaded["math"].report.dropped == {"empty message": 1, "longer than max_length 6": 1}
    assert caplog.messages == [
        "math: 2 of 3 rows left out: 1 empty message, 1 longer than max_length 6"
    ]


def test_held_out_rows_are_first_in_rank_and_never_trained(
    corpus_of: Callable[..., Corpus],
) -> None:
    pairs = [(f"{n}", "a") for n in range(10)]
    math = corpus_of(*pairs, val_rows=3, seed=7).loaded["math"]
    ranked = hash_rank(math.sample_ids, seed=7)
    assert math.trainable == ranked[3:]
    assert [row.input_ids.tolist() for row in math.held_out] == [
        math.rows[index].input_ids.tolist() for index in ranked[:3]
    ]


def test_a_copy_of_a_held_out_row_is_held_out_with_it(corpus_of: Callable[..., Corpus]) -> None:
    math = corpus_of(*[("a", "1"), ("b", "2")] * 3, val_rows=1).loaded["math"]
    assert math.val_rows == 3
    held_out = {tuple(row.input_ids) for row in math.held_out}
    assert not held_out & {tuple(math.rows[index].input_ids) for index in math.trainable}


def test_no_row_left_to_train_on_is_an_error(corpus_of: Callable[..., Corpus]) -> None:
    with pytest.raises(RequestError, match=r"3 usable rows .* corpus\.val_rows = 3 are held out"):
        corpus_of(("a", "1"), ("b", "2"), ("c", "3"), val_rows=3)
    with pytest.raises(
        RequestError, match=r"0 usable .*2 longer than max_length 5.* Hold out fewer"
    ):
        corpus_of(("a", "1"), ("b", "2"), max_length=5)
    with pytest.raises(RequestError, match="no row is left to train on: 4 usable rows"):
        corpus_of(*[("a", "1")] * 4, val_rows=1)


def test_rows_that_fail_to_render_count_as_unusable(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_lab.data.conversation import RowError
    from sft_lab.data.rendering import Renderer

    def merge(*arguments: Any) -> list[RowError]:
        return [RowError("tokens merge")] * 2

    monkeypatch.setattr(Renderer, "rows", merge)
    with pytest.raises(RequestError, match=r"2 of 2 rows cannot be used, e\.g\. .*: tokens merge"):
        corpus_of(("a", "1"), ("b", "2"))


def test_the_digest_does_not_depend_on_file_order(corpus_of: Callable[..., Corpus]) -> None:
    digest = corpus_of(("a", "1"), ("b", "2")).loaded["math"].digest
    assert corpus_of(("b", "2"), ("a", "1")).loaded["math"].digest == digest
    assert corpus_of(("b", "2"), ("a", "3")).loaded["math"].digest != digest


def test_too_long_rows_are_cut_after_an_answer_on_request(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant") * 3]
    write_jsonl(tmp_path / "math.jsonl", [{"messages": turns}])
    corpus = Corpus(
        {"math": Source(str(tmp_path / "math.jsonl"))},
        str(tiny_base),
        max_length=25,
        too_long="cut",
    )
    with caplog.at_level(logging.WARNING, logger="sft_lab"):
        corpus.load(["math"])
    # A turn is a role, three letters and an end: 5 tokens; two exchanges are 20, three 30.
    assert corpus.loaded["math"].num_tokens.tolist() == [20]
    assert corpus.loaded["math"].rows[0].cut
    assert caplog.messages == ["math: repaired: 1 cut to max_length 25"]


def test_a_second_run_reads_the_tokens_of_the_first(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_lab.data.rendering import Renderer

    pairs = (("a", "1"), ("bcd", "22"), ("", "x"))
    first = corpus_of(*pairs, max_dropped=0.5).loaded["math"]
    calls: list[int] = []
    original = Renderer.rows

    def counted(self: Renderer, conversations: Any, *arguments: Any) -> Any:
        calls.append(len(conversations))
        return original(self, conversations, *arguments)

    monkeypatch.setattr(Renderer, "rows", counted)
    again = corpus_of(*pairs, max_dropped=0.5, seed=1).loaded["math"]
    assert calls == []
    assert [row.input_ids.tolist() for row in again.rows] == [
        row.input_ids.tolist() for row in first.rows
    ]
    assert (again.report, again.digest) == (first.report, first.digest)
    # Whatever determines the tokens causes them to be made again.
    corpus_of(("a", "1"), ("bcd", "23"))
    corpus_of(("a", "1"), ("bcd", "22"), max_length=7)
    corpus_of(("a", "1"), ("bcd", "22"), template="alpaca")
    corpus_of(("a", "1"), ("bcd", "22"), where="prompt == 'a'")
    assert calls == [2, 2, 2, 1]


def test_a_cache_entry_is_complete_or_absent(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sft_lab.data.rendering import Renderer

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("SFT_LAB_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "rows", killed)
        with pytest.raises(KeyboardInterrupt):
            corpus_of(("a", "1"), ("b", "2"))
    assert list((tmp_path / "cache/tokens").iterdir()) == []
    assert len(corpus_of(("a", "1"), ("b", "2")).loaded["math"].rows) == 2
    (entry,) = (tmp_path / "cache/tokens").iterdir()
    assert {path.name for path in entry.iterdir()} == {
        "tokens.arrow",
        "report.json",
        "checksums.json",
    }


def test_leftovers_of_killed_runs_in_the_cache_are_removed_after_a_day(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFT_LAB_CACHE", str(tmp_path / "cache"))
    now = time.time()
    for name, hours in (("old", 25), ("new", 23)):
        left = tmp_path / "cache/tokens" / f".unfinished-{name}"
        left.mkdir(parents=True)
        (left / "tokens.arrow").write_bytes(b"x")
        for path in (left / "tokens.arrow", left):
            os.utime(path, (now, now - hours * 3600))
    corpus_of(("a", "1"))
    left_over = [path.name for path in (tmp_path / "cache/tokens").glob(".unfinished-*")]
    assert left_over == [".unfinished-new"]


def test_a_row_that_the_template_refuses_is_named(tiny_base: Path, tmp_path: Path) -> None:
    rows = [chat("a", "1"), {"messages": [*chat("b", "2")["messages"]], "tools": TOOLS}]
    write_jsonl(tmp_path / "math.jsonl", rows)
    corpus = Corpus({"math": Source(str(tmp_path / "math.jsonl"))}, str(tiny_base))
    with pytest.raises(
        RequestError, match=r"sources\.math: .*math\.jsonl, line 2: corpus\.template: .* the tools"
    ):
        corpus.load(["math"])


@pytest.mark.parametrize("name", ["tokens.arrow", "report.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["flipped", "half", "missing"])
def test_a_damaged_cache_entry_is_named(
    corpus_of: Callable[..., Corpus],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    damage: str,
) -> None:
    monkeypatch.setenv("SFT_LAB_CACHE", str(tmp_path / "cache"))
    rows = corpus_of(("a", "1"), ("b", "2")).loaded["math"].rows
    (entry,) = (tmp_path / "cache/tokens").iterdir()
    content = bytearray((entry / name).read_bytes())
    if damage == "flipped":  # the low bit of a token id, of which any value is an id
        ids = rows[1].input_ids.tobytes()
        content[content.find(ids) if ids in content else len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    (entry / name).write_bytes(content)
    if damage == "missing":
        (entry / name).unlink()
    with pytest.raises(RequestError, match=rf"SFT_LAB_CACHE: .* in {entry} .*, and remove that"):
        corpus_of(("a", "1"), ("b", "2"))
    shutil.rmtree(entry)
    assert len(corpus_of(("a", "1"), ("b", "2")).loaded["math"].rows) == 2


def test_a_full_disk_is_named_and_nothing_is_left(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sft_lab.data.token_store import TokenWriter

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SFT_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TokenWriter, "add", full)
    with pytest.raises(
        RequestError, match=r"SFT_LAB_CACHE: .*tokens: No space left on device\. Set"
    ):
        corpus_of(("a", "1"))
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFT_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(RequestError, match=r"SFT_LAB_CACHE: .*file/tokens: Not a dir.* Set it to"):
        corpus_of(("a", "1"))


MANIFEST = """
import sys
from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.training.stage import Stage, choose_rows

names = sys.argv[2].split(",")
corpus = Corpus({n: Source(f"{sys.argv[3]}/{n}.jsonl") for n in names}, sys.argv[1], val_rows=5)
corpus.load(names)
stage = Stage({n: "1/4" for n in names}, lr=1.0, epochs=1)
math = corpus.loaded["math"]
print(*sorted(math.sample_ids[i] for i in choose_rows("s", stage, corpus)["math"]), math.digest)
"""


@pytest.mark.slow
def test_a_subset_depends_only_on_its_own_source(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [chat(f"math {n}?", str(n)) for n in range(100)]
    script = tmp_path / "manifest.py"
    script.write_text(MANIFEST)
    write_jsonl(tmp_path / "math.jsonl", rows)
    monkeypatch.setattr("sys.argv", [str(script), str(tiny_base), "math", str(tmp_path)])
    runpy.run_path(str(script))
    first = capsys.readouterr().out
    assert len(first.split()) == 23 + 1  # floor(95 / 4)
    write_jsonl(tmp_path / "math.jsonl", rows[::-1])
    write_jsonl(tmp_path / "code.jsonl", [chat(f"code {n}?", str(n)) for n in range(50)])
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"  # not that of this process
    second = subprocess.run(
        [sys.executable, script, tiny_base, "code,math", tmp_path],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert second.stdout == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": {}}, r"corpus\.sources names no source"),
        ({"sources": {"a-b": Source("x")}}, r"corpus\.sources: 'a-b' becomes part of metric keys"),
        ({"sources": {"all": Source("x")}}, r"corpus\.sources: 'all' .* and not 'all'"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_read(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Corpus(**{"sources": {"math": Source("x")}, "tokenizer": "/nowhere", **settings})


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"corpus\.tokenizer: no such folder: /no/such\. Name a"):
        load_tokenizer("/no/such")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match=r"Name a folder with tokenizer files, or a hub name"):
        load_tokenizer(str(tmp_path))


def test_a_hub_tokenizer_without_a_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    from sft_lab import paths as hub

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sft_lab.hub.settle_offline", hub.settle_offline.__wrapped__)
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"nobody/nothing .* the hub does not answer"):
        load_tokenizer("nobody/nothing")
    assert time.monotonic() - started < 20  # the libraries' own retries take 46 s and more
