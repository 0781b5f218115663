from dataclasses import replace
from typing import Any

import pytest
from compared_runs import ENTRY
from compared_runs import run as made

from sft_lab.analysis.protocols import mismatch_line, mismatches, refuse
from sft_lab.errors import RequestError
from sft_lab.runs.results import RunResult


def run(name: str, **changes: Any) -> RunResult:
    return made(name, [[1, 0], [1, 1]], entry=replace(ENTRY, **changes))


def test_equal_protocols_have_no_mismatch() -> None:
    assert mismatches(run("a"), [run("b")]) == []
    refuse([], {}, "a")


def test_another_protocol_is_refused_with_the_key_and_both_values() -> None:
    protocol = {**ENTRY.protocol, "max_new_tokens": 16}
    found = mismatches(run("a"), [run("b", protocol=protocol, digest="cc")])
    assert [(m.key, m.reference, m.value) for m in found] == [("protocol.max_new_tokens", 8, 16)]
    with pytest.raises(
        RequestError, match=r"benchmarks\.gsm8k\.protocol\.max_new_tokens is 8 in 'a' and 16 in 'b'"
    ):
        refuse(found, {made("b", [[1, 0], [1, 1]]).run_id: "b"}, "a")


def test_scores_of_other_items_are_refused() -> None:
    split = {"fraction": 0.5, "selection": 2, "report": 2, "digest": "aa"}
    found = mismatches(run("a", split=split), [run("b"), run("c", split={**split, "digest": "b"})])
    assert {(m.key, m.is_protocol) for m in found} >= {("split", True), ("split.digest", True)}
    with pytest.raises(RequestError, match=r"benchmarks\.gsm8k\.split is .* and absent in 'b'"):
        refuse(found, {found[0].run_id: "b"}, "a")


@pytest.mark.parametrize("key", ["digest", "prompts"])
def test_a_digest_is_told_where_nothing_else_differs(key: str) -> None:
    found = mismatches(run("a"), [run("b", **{key: "cc"})])
    with pytest.raises(RequestError, match=f"{key} is \"[ab]+\" in 'a' and \"cc\" in 'b'"):
        refuse(found, {made("b", [[1, 0], [1, 1]]).run_id: "b"}, "a")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("weights", {"weights": "merged"}),
        ("conditions.sandbox", {"conditions": {"sandbox": "merged"}}),
    ],
)
def test_conditions_are_shown_and_not_refused(key: str, change: dict[str, Any]) -> None:
    found = mismatches(run("a"), [run("b", **change)])
    refuse(found, {made("b", [[1, 0], [1, 1]]).run_id: "b"}, "a")
    (mismatch,) = found
    assert not mismatch.is_protocol
    line = mismatch_line(mismatch, {made("b", [[1, 0], [1, 1]]).run_id: "b"}, "a")
    assert line.startswith(f"gsm8k: {key} is ")
    assert line.endswith("\"merged\" in 'b'")


def test_a_benchmark_of_one_side_is_no_mismatch() -> None:
    other = made("b", [[1]])
    other = replace(other, record=replace(other.record, benchmarks={"mbpp": ENTRY}))
    assert mismatches(run("a"), [other]) == []
