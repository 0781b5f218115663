import json

import pytest
from tiny_lab import FinishedRun, Lab, MakeLab


def test_runs_are_shown_side_by_side_at_every_boundary(finished: FinishedRun) -> None:
    lab = finished.lab
    run_id = lab.run.info.run_id
    outcome = lab("compare", run_id[:8], "tiny k=1/4 seed 0", "--json")
    assert outcome.code == 0, outcome.err
    by_id, by_name = json.loads(outcome.out)["runs"]
    assert by_id == by_name
    assert (by_id["run_id"], by_id["strategy"], by_id["status"]) == (run_id, "tiny", "FINISHED")
    points = [(point["after"], point["step"]) for point in by_id["boundaries"]]
    assert points == [(None, 0), ("first", 5), ("second", 12)]
    scores = [point["scores"]["scripted/accuracy"]["value"] for point in by_id["boundaries"]]
    assert scores == [0, 0.75, 0.5]
    assert by_id["average"] == 0  # of math, by its first benchmark: all answers are wrong


def test_the_table_shows_intervals_and_retention(finished: FinishedRun) -> None:
    lines = finished.lab("compare", "tiny k=1/4 seed 0").out.splitlines()
    assert lines[0] == "One run: its changes are shown for other items, not for other seeds."
    assert lines[2].split() == [
        "run",
        "after",
        "step",
        "scripted",
        "math",
        "form",
    ]
    # Wilson's interval of 2 of 4 is 15.0 to 85.0.
    assert " 50.0 [15.0, 85.0]  " in lines[5]
    assert lines[6].split() == ["retention", "at", "the", "end", "0.67"]


def test_an_unknown_run_is_refused_with_the_newest(finished: FinishedRun) -> None:
    outcome = finished.lab("compare", "dmt")
    assert outcome.code == 2
    assert "no run 'dmt' in sqlite:///mlruns/mlflow.db; most recent: " in outcome.err
    assert "(tiny k=1/4 seed 0)" in outcome.err


def test_without_a_store_nothing_is_found_and_nothing_made(lab: Lab) -> None:
    before = sorted(lab.folder.iterdir())
    outcome = lab("compare", "dmt")
    assert outcome.code == 2
    assert "no run 'dmt' in sqlite:///mlruns/mlflow.db; most recent: none." in outcome.err
    assert sorted(lab.folder.iterdir()) == before


def test_a_run_that_trained_nothing_is_refused(lab: Lab) -> None:
    assert lab("validate", "--config=tiny.yaml").code == 0
    outcome = lab("compare", lab.run.info.run_id[:8])
    assert outcome.code == 2
    assert "is one of `validate`, which trains no stage; name runs of `fit`." in outcome.err


@pytest.fixture(scope="module")
def three_runs(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Seeds 0 and 1 of one config, and ``longer``, which was measured with longer answers."""
    lab = make_lab(tmp_path_factory.mktemp("three"))
    scored = ("--config=scripted.yaml", "--evaluation.every_n_steps=null")
    longer = (
        "--trainer.logger.init_args.run_name=longer",
        "--evaluation.benchmarks.scripted.init_args.max_new_tokens=3",
    )
    for changes in ((), ("--seed_everything=1",), longer):
        outcome = lab.fit(*scored, *changes)
        assert outcome.code == 0, outcome.err
    return lab


def test_a_run_does_not_differ_from_itself(finished: FinishedRun) -> None:
    name = finished.lab.run.info.run_name
    compared = json.loads(finished.lab("compare", name, name, "--json").out)
    conclusions = {change["key"]: change["conclusion"] for change in compared["differences"]}
    assert conclusions == {
        "world_math/format_free": "not tested",  # no answer is right, before and after
        "scripted/accuracy": "inconclusive",  # four items rule out nothing
    }
    assert [change["difference"]["value"] for change in compared["differences"]] == [0, 0]
    assert [change["p_holm"] for change in compared["differences"]] == [1, 1]
    (forgotten,) = compared["runs"][0]["changed_items"]["scripted"]
    # 3 of 4 items after the first stage, 2 at the end.
    found = (forgotten["id"], forgotten["kind"], forgotten["stage"], forgotten["step"])
    assert found == ("math/2", "forgotten", "first", 5)
    text = finished.lab("compare", name, "--items", "1").out
    twice = finished.lab("compare", name, name).out
    assert twice.startswith("One seed only: this speaks of these two runs, on other items, and not")
    assert "scripted: 1 item forgotten, 0 gained since first" in text


def test_other_protocols_are_refused_unless_allowed(three_runs: Lab) -> None:
    names = ("tiny k=1/4 seed 0", "longer")
    outcome = three_runs("compare", *names)
    assert outcome.code == 2
    assert (
        "benchmarks.scripted.protocol.max_new_tokens is 2 in 'tiny k=1/4 seed 0' and 3 in 'longer'"
        in outcome.err
    )
    outcome = three_runs("compare", *names, "--allow_different_protocols")
    assert outcome.code == 0, outcome.err
    assert "! other protocol: scripted: protocol.max_new_tokens is 2" in outcome.out
    # The same items, differently answered: tested, and flagged.
    lines = outcome.out.splitlines()
    tests = [line for line in lines if "  inconclusive  " in line or "  not tested  " in line]
    found = [(line.split()[1], ") !" in line) for line in tests if line.startswith("longer ")]
    # Against the other run, and against its own best boundary, where nothing needs a flag.
    against, within = found[: len(found) // 2], found[len(found) // 2 :]
    assert against == [("math", False), ("scripted", True)]
    assert within == [("math", False), ("scripted", False)]


def test_runs_that_differ_in_their_seed_are_grouped_by_name(three_runs: Lab) -> None:
    compared = json.loads(three_runs("compare", "--over_seeds", "tiny k=1/4", "--json").out)
    (group,) = compared["groups"]
    assert (group["name"], len(group["runs"])) == ("tiny k=1/4", 2)
    assert [run["seed"] for run in compared["runs"]] == [0, 1]
    named = three_runs("compare", "--over_seeds", "tiny k=1/4 seed 1", "tiny k=1/4 seed 0")
    assert "tiny k=1/4 (2 seeds)" in named.out
    reference = ("--reference", "tiny k=1/4 seed 1")  # one run of a group means the group
    named = three_runs("compare", "--over_seeds", "tiny k=1/4", *reference)
    assert named.out.count("retention at the end") == 1
    outcome = three_runs("compare", "--over_seeds", "tiny")
    assert outcome.code == 2
    assert "no run 'tiny' in" in outcome.err


def test_a_reference_may_be_any_run(three_runs: Lab) -> None:
    runs = ("tiny k=1/4 seed 0", "tiny k=1/4 seed 1")
    compared = json.loads(three_runs("compare", *runs, "--reference", runs[1], "--json").out)
    assert compared["reference"] == 1
    assert {change["before"] for change in compared["differences"]} == {runs[1]}
    compared = json.loads(three_runs("compare", runs[0], "--reference", runs[1], "--json").out)
    assert [run["name"] for run in compared["runs"]] == [runs[1], runs[0]]


def test_seeds_trained_by_other_configs_are_not_taken_together(
    three_runs: Lab,
) -> None:
    lab = three_runs
    other = ("--config=scripted.yaml", "--evaluation.every_n_steps=null", "--seed_everything=2")
    name = "--trainer.logger.init_args.run_name=tiny k=1/4 seed 2"
    outcome = lab.fit(*other, name, "--data.stages.second.lr=0.003")
    assert outcome.code == 0, outcome.err
    outcome = lab("compare", "--over_seeds", "tiny k=1/4")
    assert outcome.code == 2
    assert (
        "data.stages.second.lr is 0.005 in 'tiny k=1/4 seed 0' and 0.003 in 'tiny k=1/4 seed 2'"
        in outcome.err
    )
    seeds = ("tiny k=1/4 seed 0", "tiny k=1/4 seed 1")
    assert lab("compare", "--over_seeds", *seeds).code == 0


def test_runs_of_one_name_are_labelled_by_their_ids(three_runs: Lab) -> None:
    ids = [run.info.run_id for run in three_runs.runs[:2]]
    for run_id in ids:
        three_runs.store.client.set_tag(run_id, "mlflow.runName", "twin")
    names = [run_id[:8] for run_id in ids]
    outcome = three_runs("compare", *names, "--json", "--allow_different_protocols")
    groups = json.loads(outcome.out)["groups"]
    assert [group["name"] for group in groups] == [f"twin {name}" for name in names]
