"""The notebooks' code, run on a finished run in place of a training of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import FinishedRun

import sft_lab
from sft_lab.launch.parser import parse_files

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch, notebook: Path, small: bool
) -> None:
    asked: list[Any] = []

    def fit(config: str, overrides: dict[str, Any]) -> Any:
        asked.append(parse_files([config], overrides).plain)
        store = f"sqlite:///{finished.lab.folder}/mlruns/mlflow.db"
        return sft_lab.load_run(finished.lab.run.info.run_id, store)

    monkeypatch.setattr(sft_lab, "fit", fit)
    names: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("SMALL = False", f"SMALL = {small}"), names)
    [config] = asked
    assert [stage["max_steps"] for stage in config["data"]["stages"].values()] == [
        names["steps"]
    ] * 3
    assert set(names["run"].scores["step"]) == {0, 4, 5, 8, 12}
