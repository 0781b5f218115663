import json
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_lab import Lab

from sft_lab.errors import RequestError
from sft_lab.runs.logger import RunLogger, run_logger

LOGGER = '''
import json

from lightning.pytorch.loggers import Logger


class Lines(Logger):
    """Appends every metric to a file as a line of JSON."""

    name = version = None

    def __init__(self, path):
        self.path = path

    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            for key, value in metrics.items():
                file.write(json.dumps([key, step, value]) + "\\n")

    def log_hyperparams(self, params):
        pass
'''
TWO_LOGGERS = """
trainer:
  logger:
    - class_path: lines.Lines
      init_args: {path: lines.jsonl}
    - class_path: sft_lab.runs.logger.RunLogger
"""


@pytest.mark.slow
def test_a_logger_from_outside_gets_the_metrics_of_the_record(lab: Lab) -> None:
    lab.write("lines.py", LOGGER)
    lab.write("two.yaml", TWO_LOGGERS)
    outcome = lab.fit("--config=two.yaml", "--trainer.log_every_n_steps=1")
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
