"""A finished run's base and adapters as a logged model of MLflow."""

import errno
import json
import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException, get_error_code
from tiny_lab import EVALUATED_STEPS, FinishedRun, Lab, MakeLab

from sft_lab.errors import RequestError
from sft_lab.runs.client import StoreClient
from sft_lab.runs.logged_model import lasting, log_model
from sft_lab.runs.logger import RunLogger


def models_of(lab: Lab) -> list[LoggedModel]:
    experiment = lab.run.info.experiment_id
    return list(lab.store.client.search_logged_models([experiment]))


def test_a_logged_model_answers_as_generate_does(
    finished: FinishedRun,
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = finished.lab.json("answers/step_000012/scripted.json")
    graded = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    texts = [row["prompt"] for row in graded]
    write_jsonl(lab.folder / "asked.jsonl", [{"prompt": text} for text in texts])
    store = f"--tracking_uri=sqlite:///{finished.lab.folder}/mlruns/mlflow.db"
    options = ("--prompts=asked.jsonl", "--out=answers.jsonl", "--max_new_tokens=6", store)
    drawn = ("--temperature=1", "--seed=3")
    assert lab("generate", finished.lab.run.info.run_id, *options, *drawn).code == 0
    lines = (lab.folder / "answers.jsonl").read_text().splitlines()
    expected = [json.loads(line)["completion"] for line in lines]

    capsys.readouterr()
    loaded = finished.lab.logged_model(monkeypatch)
    asked = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    params = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    assert loaded.predict(asked, params=params) == expected
    assert len(set(expected)) > 1
    greedy = loaded.predict([{"prompt": text} for text in texts], params={"max_new_tokens": 2})
    assert greedy == [row["completion"] for row in graded]  # of the last evaluation
    assert "mlflow" not in capsys.readouterr().err  # such as packages that it misses
    with pytest.raises(RequestError, match="expected rows with 'prompt' or 'messages', got none"):
        loaded.predict(["What is 1 plus 1?"])
    with pytest.raises(RequestError, match=r"row 1: expected a text under 'prompt'.*got .*\['a'\]"):
        loaded.predict({"prompt": ["a"]})
    for name, value, allowed in (
        ("temperature", -1.0, "0 or more and finite"),
        ("top_p", 7.0, r"in \(0, 1\]"),
        ("max_new_tokens", 0, "1 or more"),
        ("seed", -1, r"in \[0, "),
    ):
        with pytest.raises(RequestError, match=f"predict: {name} must be {allowed}.*, got {value}"):
            loaded.predict([{"prompt": "a"}], params={name: value})
    described = loaded.metadata.signature.to_dict()
    assert '"messages"' in described["inputs"]
    assert '"max_new_tokens"' in described["params"]


def test_a_run_shows_its_model_with_base_and_final_scores(finished: FinishedRun) -> None:
    lab = finished.lab
    [model] = models_of(lab)
    assert str(model.status) == "READY"
    assert model.source_run_id == lab.run.info.run_id
    assert model.name == "tiny k=1-4 seed 0"  # MLflow takes no slash
    assert model.params == {
        "base": "world://base",
        "revision": "-",
        "quantization": "fp32",
        "adapters": "lora r=4",
        "stages": "first, second",
        "seed": "0",
    }
    [output] = lab.run.outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 12)
    scores = {point.key: point.value for point in model.metrics}
    assert scores["scripted/accuracy"] == 0.5
    for key in ("ability/math", "change_from_base/math", "val_loss/general"):
        assert scores[key] == lab.points(key)[12]
    assert not {"lr", "train_loss/all"} & scores.keys()
    assert "warn" not in finished.outcome.err.lower()


def test_adapters_of_a_local_store_take_no_further_space(finished: FinishedRun) -> None:
    lab = finished.lab
    [model] = models_of(lab)
    folder = lab.folder / model.artifact_location / "data/adapter"
    staged = lab.artifact("stages/second/adapter_model.safetensors")
    assert os.path.samefile(folder / staged.name, staged)
    assert (folder.parent / "chat_template.jinja").read_text()


@pytest.fixture
def again(finished: FinishedRun, tmp_path: Path, make_lab: MakeLab) -> Lab:
    """A copy of the finished run whose model is not logged yet."""
    shutil.copytree(finished.lab.folder / "mlruns", tmp_path / "mlruns")
    lab = make_lab(tmp_path)
    [model] = models_of(lab)
    lab.store.client.delete_logged_model(model.model_id)
    return lab


def log_again(lab: Lab) -> None:
    run_id = lab.run.info.run_id
    logger = RunLogger(f"sqlite:///{lab.folder}/mlruns/mlflow.db", run_id=run_id)
    log_model(logger, lab.store.config(run_id), "{{ messages }}", ["ability/math"])


def test_a_model_whose_files_were_not_all_written_is_finished(
    again: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sft_lab.runs.logged_model._write", fail)
        with pytest.raises(OSError, match="No space left"):
            log_again(again)
    [begun] = models_of(again)
    assert str(begun.status) == "PENDING"
    log_again(again)
    log_again(again)
    [model] = models_of(again)
    assert (model.model_id, str(model.status)) == (begun.model_id, "READY")
    assert len(again.run.outputs.model_outputs) == 2  # that of the deleted one, and one more
    assert list(again.points("ability/math")) == list(EVALUATED_STEPS)


def test_a_server_without_logged_models_is_named(
    again: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("404", get_error_code(404))

    monkeypatch.setattr(StoreClient, "search_logged_models", refuse)
    log_again(again)
    assert "keeps no logged models; MLflow 3 does" in caplog.text


def test_a_logged_model_names_its_base_for_any_folder_and_any_day(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert lasting("Qwen/Qwen3-0.6B", "main", "1f" * 20) == f"Qwen/Qwen3-0.6B@{'1f' * 20}"
    assert lasting("Qwen/Qwen3-0.6B@main", None, "1f" * 20) == f"Qwen/Qwen3-0.6B@{'1f' * 20}"
    assert lasting("world://base", None, None) == "world://base"
    with chdir(tmp_path):
        assert lasting("base", None, None) == str(tmp_path / "base")
