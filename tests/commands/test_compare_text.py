import json
from dataclasses import replace

import pytest
from compared_runs import ENTRY, compared, group

from sft_lab.analysis.groups import RunGroup
from sft_lab.analysis.protocols import mismatches
from sft_lab.commands.compare_json import as_json
from sft_lab.commands.compare_text import report
from sft_lab.metrics.score import accuracy
from sft_lab.runs.record import StageRecord

NONE, ALL = [0] * 10, [1] * 10


def test_what_is_shown_stands_out_from_what_may_be_chance() -> None:
    groups = [group("a", [NONE, ALL]), group("b", [NONE, NONE]), group("c", [NONE, [0, *ALL[1:]]])]
    lines = report(compared(groups), num_items=0, color=True).splitlines()
    at = lines.index("Against 'a', both at their end, on the same items:")
    assert lines[at + 2].startswith("\x1b[1mb")
    assert " -100.0 [-100.0, -60.8] " in lines[at + 2]
    assert lines[at + 2].split()[5] == "lower"
    assert lines[at + 2].endswith("\x1b[0m")
    assert lines[at + 3].startswith("c")
    assert " (-10.0 [" in lines[at + 3]
    assert " inconclusive " in lines[at + 3]
    assert any("for the 5 tests" in line for line in lines)
    assert "\x1b" not in report(compared(groups), num_items=0, color=False)


def test_forgotten_items_are_shown_up_to_a_number() -> None:
    found = compared([group("a", [[1, 1, 1, 0], [0, 0, 0, 0]])])
    text = report(found, num_items=2, color=False)
    assert "a, gsm8k: 3 items forgotten, 0 gained since base" in text
    assert [line.split()[0] for line in text.splitlines() if "  forgotten  " in line] == [
        "i0",
        "i1",
    ]
    assert "items forgotten" not in report(found, num_items=0, color=False)


def test_a_narrow_terminal_gets_blocks_and_answers_below_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = compared([group("a run of many words", [[1] * 10, [0] * 10]), group("b", [NONE, NONE])])
    lines = report(found, num_items=1, color=True).splitlines()
    assert max(len(line.removeprefix("\x1b[1m").removesuffix("\x1b[0m")) for line in lines) <= 80
    at = lines.index("At the end against the best earlier boundary:")
    assert lines[at + 1].split() == ["run", "ability", "difference", "conclusion", "against"]
    assert lines[at + 2].startswith("\x1b[1ma run of many words")
    [blank] = [n for n in range(at, at + 6) if not lines[n]]
    assert lines[blank + 1].split() == ["run", "ability", "items", "of", "p", "Holm", "p"]
    assert lines[blank + 2].split()[-4:] == ["-10", "10", "0.002", "0.006\x1b[0m"]
    monkeypatch.setenv("COLUMNS", "40")
    lines = report(found, num_items=1, color=False).splitlines()
    item = lines.index("i0  forgotten")
    assert [line.split()[0] for line in lines[item + 1 : item + 4]] == ["question", "before", "at"]


def test_it_ends_with_what_each_run_has_forgotten() -> None:
    [run] = group("a", [NONE, ALL, NONE]).runs.values()
    stages = {**run.record.stages, "s2": StageRecord(10, 1, {"code": "1"}, {}, "")}
    groups = [RunGroup("a", {0: replace(run, record=replace(run.record, stages=stages))})]
    lines = report(compared(groups), 1, color=False).splitlines()
    assert lines[-1] == "a: math forgotten, -100.0 points [-100.0, -60.8]."
    # A run that trains math to its end has had nothing to forget.
    assert "forgotten, -" not in report(compared([group("a", [ALL, NONE])]), 0, color=False)


def test_other_protocols_are_flagged_in_every_cell() -> None:
    entry = replace(ENTRY, protocol={**ENTRY.protocol, "max_new_tokens": 16}, weights="merged")
    groups = [group("a", [NONE, ALL]), group("b", [NONE, ALL], entry=entry)]
    results = [found.runs[0] for found in groups]
    text = report(compared(groups, 0, mismatches(results[0], results[1:])), 0, color=False)
    flagged = [line.split()[0] for line in text.splitlines() if line.rstrip().endswith("] !")]
    assert flagged == ["b", "b"]
    assert "! other protocol: gsm8k: protocol.max_new_tokens is 8 in 'a', 16 in 'b'" in text
    assert "note: gsm8k: weights is \"live\" in 'a', \"merged\" in 'b'" in text


def test_seeds_are_counted_and_their_retention_averaged() -> None:
    seeds = [[NONE, ALL, [1] * (7 + n) + [0] * (3 - n)] for n in range(2)]
    text = report(compared([group("a", *seeds)]), 0, color=False)
    assert text.startswith("2 seeds or more on each side: this speaks of other seeds")
    assert text.splitlines()[3].split()[:4] == ["a", "(2", "seeds)", "base"]
    assert "0.75 [0.11, 1.39]" in text


def test_forgetting_of_form_has_columns_of_its_own() -> None:
    # The ability stays at 10 of 10; the strict score and the form fall to 4 of 10.
    entry = replace(ENTRY, strict_score="formed")
    [run] = group("a", [ALL, ALL, ALL], entry=entry).runs.values()
    strict = [accuracy([True] * n + [False] * (10 - n)) for n in (10, 10, 4)]
    points = tuple(
        replace(point, scores={**point.scores, "gsm8k/formed": score}, forms={"math": score})
        for point, score in zip(run.points, strict, strict=True)
    )
    found = compared([RunGroup("a", {0: replace(run, points=points)})])
    lines = report(found, 0, color=False).splitlines()
    assert lines[2].split() == ["run", "after", "step", "math", "form"]
    assert [line.split()[-1] for line in lines[3:6]] == ["100.0", "100.0", "40.0"]
    assert lines[6].split() == ["retention", "at", "the", "end", "1.00"]
    assert lines[7].split() == ["forgetting", "with", "form", "60.0"]
    [of_run] = as_json(found)["runs"]
    assert of_run["changes"]["gsm8k/strict"]["form_forgetting"] == pytest.approx(0.6)
    assert of_run["boundaries"][2]["forms"]["math"]["value"] == 0.4


def test_few_ratings_have_no_interval_and_the_json_no_infinity() -> None:
    entry = replace(ENTRY, scale=(1, 10))
    a, b = (group(n, [[2, 3], [v, v]], entry=entry) for n, v in (("a", 5), ("b", 6)))
    both = compared([a, b])
    assert "(+1.00 [-, -])" in report(both, 0, color=False)
    found = json.loads(json.dumps(as_json(both), allow_nan=False))
    assert found["differences"][0]["difference"]["low"] is None
    assert found["differences"][0]["conclusion"] == "not tested"  # two items show nothing
    assert found["reference"] == 0
    assert [entry["name"] for entry in found["groups"]] == ["a", "b"]
