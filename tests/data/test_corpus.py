import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.corpus import Corpus, load_tokenizer
from sft_lab.data.shares import hash_rank
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError


@pytest.fixture
def corpus_of(tiny_base: Path, tmp_path: Path) -> Callable[..., Corpus]:
    """Makes a corpus of one source, "math", from pairs of prompt and answer, and loads it."""

    def make(*pairs: tuple[str, str], max_dropped: float = 0.1, **settings: Any) -> Corpus:
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
        (tmp_path / "math.jsonl").write_text("\n".join(lines))
        source = Source(str(tmp_path / "math.jsonl"), max_dropped=max_dropped)
        corpus = Corpus({"math": source}, str(tiny_base), **settings)
        corpus.load(["math"])
        return corpus

    return make


def test_rows_stand_in_file_order_with_their_lengths(corpus_of: Callable[..., Corpus]) -> None:
    math = corpus_of(("a", "1"), ("bcd", "22"), ("ef", "333")).loaded["math"]
    # <user>prompt<end><assistant>answer<end>
    assert [len(row.input_ids) for row in math.rows] == [6, 9, 9]
    assert [row.num_target_tokens for row in math.rows] == [2, 3, 4]
    assert math.dropped == {}


def test_too_long_rows_are_dropped_counted_and_told(
    corpus_of: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sft_lab"):
        math = corpus_of(("a", "1"), ("bcd", "22"), ("", "x"), max_length=6, max_dropped=0.4)
    assert len(math.loaded["math"].rows) == 1
    assert math.loaded["math"].dropped == {"empty message": 1, "longer than max_length 6": 1}
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
    assert math.held_out == [math.rows[index] for index in ranked[:3]]


def test_a_copy_of_a_held_out_row_is_held_out_with_it(corpus_of: Callable[..., Corpus]) -> None:
    math = corpus_of(*[("a", "1"), ("b", "2")] * 3, val_rows=1).loaded["math"]
    assert math.val_rows == 3
    held_out = {tuple(row.input_ids) for row in math.held_out}
    assert not held_out & {tuple(math.rows[index].input_ids) for index in math.trainable}


def test_no_row_left_to_train_on_is_an_error(corpus_of: Callable[..., Corpus]) -> None:
    with pytest.raises(RequestError, match=r"3 usable rows .* corpus\.val_rows = 3 are held out"):
        corpus_of(("a", "1"), ("b", "2"), ("c", "3"), val_rows=3)
    with pytest.raises(RequestError, match=r"0 usable .*2 longer than max_length 5.* Raise corpus"):
        corpus_of(("a", "1"), ("b", "2"), max_length=5)
    with pytest.raises(RequestError, match="no row is left to train on: 4 usable rows"):
        corpus_of(*[("a", "1")] * 4, val_rows=1)


def test_a_renderer_that_loses_rows_is_an_error_as_well(
    corpus_of: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_lab.data.formats import RowError
    from sft_lab.data.rendering import Renderer

    def merge(*arguments: Any) -> None:
        raise RowError("tokens merge")

    monkeypatch.setattr(Renderer, "row", merge)
    with pytest.raises(RequestError, match=r"1 of 2 rows cannot be used, e\.g\. tokens merge"):
        corpus_of(("a", "1"), ("b", "2"))


def test_the_digest_does_not_depend_on_file_order(corpus_of: Callable[..., Corpus]) -> None:
    digest = corpus_of(("a", "1"), ("b", "2")).loaded["math"].digest
    assert corpus_of(("b", "2"), ("a", "1")).loaded["math"].digest == digest
    assert corpus_of(("b", "2"), ("a", "3")).loaded["math"].digest != digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": {}}, r"corpus\.sources names no source"),
        ({"sources": {"a-b": Source("x")}}, r"corpus\.sources: 'a-b' becomes part of metric keys"),
        ({"sources": {"all": Source("x")}}, r"corpus\.sources: 'all' .* and not 'all'"),
        ({"sources": {"a": Source("x", max_dropped=2)}}, r"a\.max_dropped must lie in \[0, 1\]"),
        ({"max_length": 1}, r"corpus\.max_length must be 2 tokens or more, got 1"),
        ({"val_rows": -1}, r"corpus\.val_rows must be 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_read(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Corpus(**{"sources": {"math": Source("x")}, "tokenizer": "/nowhere", **settings})


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"corpus\.tokenizer: there is no /no/such\. Name a fold"
    ):
        load_tokenizer("/no/such")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match=r"Name a folder with tokenizer files, or a hub name"):
        load_tokenizer(str(tmp_path))


def test_a_hub_tokenizer_without_a_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    from sft_lab.data import hub

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sft_lab.data.corpus.settle_offline", hub.settle_offline.__wrapped__)
    started = time.monotonic()
    with pytest.raises(RequestError, match="no tokenizer can be loaded from nobody/nothing"):
        load_tokenizer("nobody/nothing")
    assert time.monotonic() - started < 20  # the libraries' own retries take 46 s and more
