import json
from pathlib import Path

import pytest
from tiny_lab import Lab

from sft_lab.commands.machine_findings import gradient_cosine
from sft_lab.evaluation.sandbox.sandbox import isolation_fault, isolation_route


def test_doctor_reports_the_machine(lab: Lab) -> None:
    outcome = lab("doctor")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last line is a path
    names = [line[:17].strip() for line in lines]
    assert [name for name in names if name] == [
        "host",
        "packages",
        "CUDA",
        "precision",
        "4-bit gradients",
        "MLflow store",
        "sandbox",
        "configs",
    ]
    found = json.loads(lab("doctor", "--json").out)
    assert found["4-bit gradients"].startswith("correct (cosine 1.0")
    fault = isolation_fault()
    levels = f"isolated (by {isolation_route()}), limited"
    assert found["sandbox"] == (f"limited only: {fault}" if fault else levels)
    assert (Path(found["configs"]) / "world/dmt.yaml").is_file()


def test_an_unusable_store_is_a_finding(lab: Lab) -> None:
    outcome = lab("doctor", "--tracking_uri=sqlite:///tiny.yaml/mlflow.db")
    assert outcome.code == 0
    found = " ".join(outcome.out.split())
    assert "tiny.yaml cannot be made: " in found
    assert "tiny.yaml is a file. Name a folder you may write to." in found


def test_doctor_creates_nothing(lab: Lab) -> None:
    before = sorted(lab.folder.iterdir())
    assert "sqlite:///mlruns/mlflow.db, created by the first run" in lab("doctor").out
    assert sorted(lab.folder.iterdir()) == before


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_stay_right_after_an_evaluation(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))
    assert gradient_cosine(quantization) > 0.999
