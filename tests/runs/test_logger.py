import json
from pathlib import Path

import pytest
from docs_blocks import code_block
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_lab import Lab

from sft_lab.errors import RequestError
from sft_lab.runs.logger import RunLogger, run_logger


@pytest.mark.slow
def test_a_logger_from_outside_gets_the_metrics_of_the_record(lab: Lab) -> None:
    lab.write("my_loggers.py", code_block("# my_loggers.py"))
    lab.write("two_loggers.yaml", code_block("# two_loggers.yaml"))
    outcome = lab.fit("--config=two_loggers.yaml", "--trainer.log_every_n_steps=1")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (lab.folder / "lines.jsonl").read_text().splitlines()]
    assert {key for key, _, _ in lines} == set(lab.run.data.metrics)
    for key in lab.run.data.metrics:
        assert {step: value for name, step, value in lines if name == key} == lab.points(key)


def test_a_run_has_exactly_one_record(tmp_path: Path) -> None:
    def trainer(*loggers: object) -> Trainer:
        return Trainer(logger=list(loggers), accelerator="cpu")  # type: ignore[arg-type]

    records = [
        RunLogger(f"sqlite:///{tmp_path}/mlflow.db", artifact_location=str(tmp_path / "artifacts"))
        for _ in range(2)
    ]
    other = CSVLogger(str(tmp_path))
    assert run_logger(trainer(other, records[0])) is records[0]
    for loggers in ([], [other], records):
        with pytest.raises(RequestError, match=r"trainer\.logger must be .*RunLogger"):
            run_logger(trainer(*loggers))
