import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typing_extensions import override

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.gsm8k import GSM8K
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.benchmarks.ifeval.benchmark import IFEval
from sft_lab.evaluation.benchmarks.mbpp import MBPP
from sft_lab.evaluation.benchmarks.world import WorldCode, WorldGeneral, WorldMath


class Echo(Benchmark):
    """A whole benchmark: right when the completion repeats the row's word."""

    score_names = ("accuracy",)
    row_fields: ClassVar[Mapping[str, type]] = {"word": str}

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        return [
            Verdict({"accuracy": completion == item.row["word"]}, completion)
            for item, completion in zip(items, completions, strict=True)
        ]


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "messages": [{"role": "user", "content": "?"}], "word": name, **changes}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_items_come_in_file_order_with_their_rows(tmp_path: Path) -> None:
    echo = Echo(write(tmp_path / "echo.jsonl", row("a"), row("b", extra=1)), max_new_tokens=8)
    first, second = echo.items()
    assert first == Item("a", ({"role": "user", "content": "?"},), row("a"))
    assert second.row["extra"] == 1
    verdicts = echo.grade([first, second], ["a", "a"])
    assert [verdict.marks for verdict in verdicts] == [{"accuracy": True}, {"accuracy": False}]


def test_no_file_is_needed_before_the_items_are(tmp_path: Path) -> None:
    echo = Echo(str(tmp_path / "later.jsonl"), max_new_tokens=8)
    with pytest.raises(RequestError, match=r"no such file: .*later\.jsonl"):
        echo.items()
    write(tmp_path / "later.jsonl", row("a"))
    assert [item.id for item in echo.items()] == ["a"]


def test_num_examples_spread_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "echo.jsonl", *(row(name) for name in "abcdef"))
    assert [item.id for item in Echo(path, 8, num_examples=3).items()] == ["a", "c", "e"]
    assert [item.id for item in Echo(path, 8, num_examples=4).items()] == ["a", "b", "d", "e"]
    with pytest.raises(RequestError, match=r"num_examples is 7, but .* has 6 rows"):
        Echo(path, 8, num_examples=7).items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ""}, "path .* got ''"),
        ({"max_new_tokens": 0}, "max_new_tokens .* got 0"),
        ({"num_examples": -1}, "num_examples .* got -1"),
        ({"source": ""}, "source .* got ''"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Echo(**{"path": "echo.jsonl", "max_new_tokens": 8, **arguments})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "is not JSON: .*character 2"),
        ("[]", r"holds '\[\]', expected an object with keys"),
        (json.dumps(row("b", id=7)), "'id' must be a non-empty string, got 7"),
        (json.dumps(row("b", messages=[])), r"'messages' must be a list .* got \[\]"),
        (json.dumps(row("b", messages=[{"role": "user"}])), "'messages' must be a list"),
        (
            json.dumps(row("b", messages=[{"role": "assistant", "content": "!"}])),
            "must end with the user's turn, got role 'assistant'",
        ),
        (json.dumps(row("b", word=3)), "'word' must be a string, got 3"),
        (
            json.dumps({"id": "b", "messages": row("b")["messages"]}),
            "key 'word' is missing; a row of Echo",
        ),
        ("{}", """keys 'id', 'messages', 'word' are missing; .* {"id": "m1", "messages": """),
        (json.dumps(row("a")), "id 'a' is already on line 1"),
    ],
)
def test_wrong_rows_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "echo.jsonl"
    path.write_text(f"{json.dumps(row('a'))}\n\n{line}\n")
    with pytest.raises(RequestError, match=rf"echo\.jsonl, line 3.*{message}"):
        Echo(str(path), 8).items()


@pytest.mark.parametrize(
    "kind", [GSM8K, HumanEval, MBPP, IFEval, WorldMath, WorldCode, WorldGeneral]
)
def test_the_row_that_an_error_shows_is_right(tmp_path: Path, kind: type[Benchmark]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    chat = {"prompt": "chat"} if kind is MBPP else {}
    with pytest.raises(RequestError, match="are missing; a row of") as caught:
        kind(str(path), 8, **chat).items()
    path.write_text(str(caught.value).partition(f"a row of {kind.__name__} is ")[2].rstrip("."))
    assert len(kind(str(path), 8, **chat).items()) == 1


def test_files_of_no_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(RequestError, match=r"latin\.jsonl, line 1 is not UTF-8"):
        Echo(str(tmp_path / "latin.jsonl"), 8).items()
    with pytest.raises(RequestError, match="has no rows"):
        Echo(write(tmp_path / "empty.jsonl"), 8).items()


def test_digest_follows_items_and_protocol_and_not_the_place(tmp_path: Path) -> None:
    here = Echo(write(tmp_path / "here.jsonl", row("a"), row("b")), 8)
    there = Echo(write(tmp_path / "there.jsonl", row("a"), row("b")), 8, source="math")
    assert here.digest() == there.digest()
    others = [Echo(here.path, 9), Echo(here.path, 8, num_examples=1)]
    others.append(Echo(write(tmp_path / "other.jsonl", row("a"), row("c")), 8))
    assert len({here.digest(), *(other.digest() for other in others)}) == 4
