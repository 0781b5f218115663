import json

from runs import FinishedRun, Lab


def test_runs_stand_side_by_side_at_every_boundary(finished: FinishedRun) -> None:
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
    assert by_id["final"]["average/score"] == 0.25


def test_the_table_shows_intervals_and_retention(finished: FinishedRun) -> None:
    lines = finished.lab("compare", "tiny k=1/4 seed 0").out.splitlines()
    assert lines[0].split() == ["run", "after", "step", "scripted/accuracy", "world_math/accuracy"]
    # Wilson's interval of 2 of 4 is 15.0 to 85.0.
    assert " 50.0 [15.0, 85.0]  " in lines[3]
    assert lines[4].split() == ["retention", "at", "the", "end", "0.67"]


def test_an_unknown_run_is_refused_with_the_newest(finished: FinishedRun) -> None:
    outcome = finished.lab("compare", "dmt")
    assert outcome.code == 2
    assert "RUN 'dmt' is no run in sqlite:///mlruns/mlflow.db; the newest are " in outcome.err
    assert "(tiny k=1/4 seed 0)" in outcome.err


def test_without_a_store_nothing_is_found_and_nothing_made(lab: Lab) -> None:
    before = sorted(lab.folder.iterdir())
    outcome = lab("compare", "dmt")
    assert outcome.code == 2
    assert "RUN 'dmt' is no run in sqlite:///mlruns/mlflow.db; the newest are none." in outcome.err
    assert sorted(lab.folder.iterdir()) == before


def test_a_run_that_trained_nothing_is_refused(lab: Lab) -> None:
    assert lab("validate", "--config=tiny.yaml").code == 0
    outcome = lab("compare", lab.run.info.run_id[:8])
    assert outcome.code == 2
    assert "is one of `validate`, which trains no stage; name runs of `fit`." in outcome.err
