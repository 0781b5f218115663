from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.corpus import Corpus
from sft_lab.data.sources import Source
from sft_lab.errors import RequestError
from sft_lab.training.stage import Stage, check_stages, choose_rows, trains

STAGE = Stage(mixture={"math": 1}, lr=1e-3, epochs=1)


def test_sound_stages_pass() -> None:
    stages = {"1-first": STAGE, "second_2": replace(STAGE, epochs=None, max_tokens=10)}
    check_stages(stages, ["math"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixture": {"maths": 1}},
            r"s\.mixture names the source 'maths' \(did you mean 'math'\?\)",
        ),
        ({"mixture": {"x": 1}}, r"names the source 'x'; corpus\.sources has math, code"),
        ({"mixture": {}}, r"s\.mixture is empty; give shares by source, such as \{math: 1\}"),
        ({"epochs": None}, r"^data\.stages\.s has no end; give epochs, max_steps or max_tokens"),
        ({"total": {"rows": 0}}, r"s\.total must be above 0, got \{'rows': 0\}"),
    ],
)
def test_a_bad_key_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_stages({"s": replace(STAGE, **changes)}, ["math", "code"])


def test_stages_need_names_that_can_be_folders() -> None:
    with pytest.raises(RequestError, match=r"data\.stages is empty"):
        check_stages({}, ["math"])
    for name in ("a.b", "a/b", "", "..", "stufé"):
        with pytest.raises(RequestError, match="a stage name becomes a folder"):
            check_stages({name: STAGE}, ["math"])


@pytest.fixture
def corpus(tiny_base: Path, four_rows: Path) -> Corpus:
    source = Source(str(four_rows))
    corpus = Corpus({"math": source, "code": source}, str(tiny_base), val_rows=1)
    corpus.load(["math", "code"])
    return corpus


def test_shares_are_taken_from_what_is_not_held_out(corpus: Corpus) -> None:
    ranked = corpus.loaded["math"].ranked
    stage = replace(STAGE, mixture={"math": "1/2", "code": {"rows": 2}})
    # 3 of 4 rows may be trained on: floor(3 / 2) = 1.
    assert choose_rows("s", stage, corpus) == {"math": ranked[1:2], "code": ranked[1:3]}


def test_a_share_of_zero_leaves_the_source_out(corpus: Corpus) -> None:
    stage = replace(STAGE, mixture={"math": 1, "code": 0})
    assert list(choose_rows("s", stage, corpus)) == ["math"]
    with pytest.raises(RequestError, match=r"stages\.s\.mixture: every share is 0"):
        choose_rows("s", replace(STAGE, mixture={"math": 0}), corpus)


def test_a_stage_weighs_its_sources(corpus: Corpus) -> None:
    ranked = corpus.loaded["math"].ranked
    stage = replace(STAGE, mixture={"math": 1, "code": 3}, total={"rows": 4})
    # 1 row and 3 rows of the 3 that may be trained on.
    assert choose_rows("s", stage, corpus) == {"math": ranked[1:2], "code": ranked[1:4]}
    with pytest.raises(RequestError, match="math: a share of 1 of 3 rows selects no row"):
        choose_rows("s", replace(stage, total={"rows": 1}), corpus)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("1/4", r"s\.mixture\.math: a share of 1/4 of 3 rows selects no row; write 0"),
        (1001, r"s\.mixture\.math: 1001 is more than 1000 times the source, which has 3 rows"),
        ({"rows": 3001}, r"is more than 1000 times the source"),
        ({"tokens": 10**9}, r"is more than 1000 times the source, .* tokens"),
    ],
)
def test_shares_that_cannot_be_meant_are_refused(corpus: Corpus, share: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose_rows("s", replace(STAGE, mixture={"math": share}), corpus)


def test_a_share_of_zero_trains_nothing() -> None:
    stage = replace(STAGE, mixture={"math": "1/64", "code": 0})
    assert [trains(stage, name) for name in ("math", "code", "general")] == [True, False, False]
