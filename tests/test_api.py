"""The Python API as a notebook uses it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from tiny_lab import EVALUATED_STEPS, FinishedRun, Lab

import sft_lab
from sft_lab.errors import RequestError


@pytest.fixture
def notebook(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A notebook whose working folder is the lab's."""
    monkeypatch.chdir(lab.folder)
    monkeypatch.setenv("SFT_LAB_WORLD", str(lab.world))
    return lab


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sft_lab, sys; print('torch' in sys.modules, sorted(sft_lab.__all__))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "False ['LoadedRun', 'compare', 'evaluate', 'fit', 'load_run']"


def test_fit_returns_the_run_with_scores_answers_and_curves(
    notebook: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    run = sft_lab.fit("tiny.yaml", {"data.k": "1/2", "evaluation.every_n_steps": None})
    assert not [line for line in capfd.readouterr().err.splitlines() if "%|" in line]
    assert run.name == "tiny k=1/2 seed 0"
    assert notebook.run.info.run_id == run.run_id
    scores = run.scores
    assert set(scores["benchmark"]) == {"world_math"}
    boundaries = scores[["step", "after"]].drop_duplicates().to_numpy().tolist()
    assert boundaries == [[0, "base"], [5, "first"], [run.result.last.step, "second"]]
    answers = run.answers(step=0)
    assert len(answers) == 4
    assert {"item", "prompt", "completion", "accuracy"} <= set(answers.columns)
    assert not run.curves.empty
    with pytest.raises(RequestError, match="step 999: the run was evaluated at steps 0, 5"):
        run.answers(step=999)
    again = sft_lab.load_run(run.name)
    assert again.result == run.result


def test_a_wrong_request_is_refused_before_anything_is_written(notebook: Lab) -> None:
    with pytest.raises(RequestError, match=r"data\.stages\.first\.lrr"):
        sft_lab.fit("tiny.yaml", {"data.stages.first.lrr": 1.0})
    with pytest.raises(RequestError, match="no unfinished run of this config") as stopped:
        sft_lab.fit("tiny.yaml", ckpt_path="last")
    assert str(stopped.value).startswith("ckpt_path last: ")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ckpt_path": "gone.ckpt"}, "ckpt_path gone.ckpt: no such file"),
        ({"from_stage": "gone"}, "from_stage: expected RUN@STAGE"),
        ({"ckpt_path": "last", "from_stage": "a@b"}, "from_stage a@b starts a new run, ckpt_path"),
        ({"overrides": {"data.batch_size": 0}}, "data.batch_size must be 1 or more"),
        ({"overrides": {"model.base": "https://ada:pw@host"}}, "model.base: an address must not"),
    ]
    for arguments, said in wrong:
        with pytest.raises(RequestError) as refused:
            sft_lab.fit("tiny.yaml", **arguments)
        assert str(refused.value).startswith(said)
        assert "--" not in str(refused.value)
    assert notebook.runs == []


def test_compare_takes_runs_and_names(finished: FinishedRun) -> None:
    uri = finished.lab.store.tracking_uri
    run = sft_lab.load_run(finished.lab.run.info.run_id[:8], uri)
    compared = sft_lab.compare([run])
    assert list(compared.runs) == [run.run_id]
    assert [drop.comparison.ability.benchmark for _, drop in compared.forgetting] == [
        "world_math",
        "scripted",
    ]
    assert sorted({point.step for point in run.result.points}) == EVALUATED_STEPS
    assert {"fit", "load_run", "compare", "evaluate"} <= set(dir(sft_lab))
    with pytest.raises(RequestError, match="at least one run"):
        sft_lab.compare([])
    with pytest.raises(RequestError, match="gone"):
        sft_lab.compare(["gone"], tracking_uri=uri)


def test_evaluate_scores_any_model_and_leaves_it_as_it_was(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft_lab.evaluation.benchmarks.gsm8k import GSM8K

    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(3)]
    items = write_jsonl(tmp_path / "gsm8k.jsonl", rows)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).train()
    capfd.readouterr()
    evaluation = sft_lab.evaluate(
        model,
        AutoTokenizer.from_pretrained(tiny_base),
        {"gsm8k": GSM8K(str(items), max_new_tokens=4)},
    )
    assert capfd.readouterr() == ("", "")
    assert set(evaluation.scores) == {"gsm8k/flexible", "gsm8k/strict", "gsm8k/boxed"}
    assert evaluation.scores["gsm8k/strict"].n == 3
    ids = [answer.item.id for answer in evaluation.answers["gsm8k"]]
    assert ids == ["GSM8K/0", "GSM8K/1", "GSM8K/2"]
    assert model.training
