"""Controls are ordinary runs, made from the cells that they control."""

import json
from typing import Any

import pytest
import yaml
from study_runs import STUDY
from tiny_lab import Lab

GRID = {"k": {"values": [0, "1/4", 1], "keys": ["data.k"]}}
DMT = {"config": "./tiny.yaml", "grid": GRID}
MIXED = {"config": "./math.yaml", "set": {"data.stages.first.mixture.general": 1}}


def planned(lab: Lab, question: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the planned runs of a question, by the names of their cells."""
    study = {**STUDY, "questions": {"q": {"title": "?", **question}}}
    lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    outcome = lab("study", "--config=study.yaml", "--plan", "--json")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    return {cell: run for run in plan["runs"] for cell in run["cells"]}


def test_each_source_of_a_mixture_is_trained_alone_at_its_steps(study_lab: Lab) -> None:
    arms = {"mixed": MIXED}
    runs = planned(study_lab, {"design": "mixed", "arms": arms, "controls": ["equal_steps"]})
    mixed = runs["q mixed seed 0"]
    assert set(runs) == {
        "q mixed seed 0",
        "q mixed equal_steps math seed 0",
        "q mixed equal_steps general seed 0",
    }
    assert {run["steps"] for run in runs.values()} == {mixed["steps"]}
    runs = planned(study_lab, {"design": "mixed", "arms": arms, "controls": ["equal_tokens"]})
    for source in ("math", "general"):
        tokens = runs[f"q mixed equal_tokens {source} seed 0"]["tokens"]
        assert mixed["tokens"] <= tokens < 1.5 * mixed["tokens"]  # until the limit is reached


def test_replay_and_its_amount_have_controls_of_their_own(study_lab: Lab) -> None:
    few = {**DMT, "set": {"data.stages.second.mixture.general": "1/2"}}
    one = {"config": "./tiny.yaml", "set": {**few["set"], "data.k": "1/4"}}
    controls = ["fresh_rows", "equal_steps", "stage_order", "optimizer"]
    runs = planned(
        study_lab, {"design": "strategies", "arms": {"dmt": few, "one": one}, "controls": controls}
    )
    own = {f"q dmt k={k} seed 0" for k in ("0", "1/4", "1")}
    least = {f"q dmt k=1/4 {control} seed 0" for control in ("fresh_rows", "equal_steps")}
    without_grid = {f"q one {c}seed 0" for c in ("", "stage_order ", "optimizer ")}
    assert set(runs) >= own | least | without_grid
    assert not [name for name in runs if "stage_order" in name and "dmt" in name]
    replay, greatest = runs["q dmt k=1/4 seed 0"], runs["q dmt k=1 seed 0"]
    fresh = runs["q dmt k=1/4 fresh_rows seed 0"]
    assert (fresh["steps"], fresh["samples"]) == (replay["steps"], replay["samples"])
    assert fresh["digest"] != runs["q dmt k=0 seed 0"]["digest"]
    assert fresh["forked_from"] == "q dmt k=0 seed 0@first"
    assert runs["q dmt k=1/4 equal_steps seed 0"]["steps"] == greatest["steps"]
    turned = runs["q one stage_order seed 0"]
    assert (turned["steps"], turned["forked_from"]) == (runs["q one seed 0"]["steps"], None)


def test_smaller_amounts_are_trained_for_the_steps_of_the_greatest(study_lab: Lab) -> None:
    grid = {"fraction": {"values": ["1/2", 1], "keys": ["data.stages.first.mixture.math"]}}
    arms = {"math": {"config": "./math.yaml", "grid": grid}}
    runs = planned(study_lab, {"design": "single", "arms": arms, "controls": ["equal_steps"]})
    assert len(runs) == 3
    longer, whole = "q math fraction=1/2 equal_steps seed 0", "q math fraction=1 seed 0"
    assert (
        runs[longer]["steps"] == runs[whole]["steps"] > runs["q math fraction=1/2 seed 0"]["steps"]
    )


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (
            {"design": "strategies", "arms": {"dmt": DMT}, "controls": ["fresh_rows"]},
            "questions.q.controls: fresh_rows needs ",
        ),
        (
            {"design": "mixed", "arms": {"mixed": MIXED}, "controls": ["fresh_rows"]},
            "questions.q.controls: fresh_rows changes no arm of this question.",
        ),
        (
            {
                "arms": {
                    "a": {"config": "./math.yaml"},
                    "b": {"config": "./math.yaml", "set": {"data.stages.first.lr": 1e-5}},
                },
                "controls": ["equal_rate"],
            },
            "equal_rate, but math is trained at peak rates of 1e-05 in 'q b seed 0', ",
        ),
        ({"arms": {"a": {"config": "./math.yaml"}}, "controls": ["format_only"]}, "format_only"),
    ],
)
def test_a_control_that_cannot_be_made_is_refused(
    study_lab: Lab, question: dict[str, Any], error: str
) -> None:
    study = {**STUDY, "questions": {"q": {"title": "?", **question}}}
    study_lab.write("study.yaml", yaml.safe_dump(study, sort_keys=False))
    outcome = study_lab("study", "--config=study.yaml", "--plan")
    assert outcome.code == 2
    assert error in outcome.err
