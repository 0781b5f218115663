"""Provide fixtures that run the command line over the tiny world, each in its own folder."""

import io
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sft_lab.errors import SIGNALS

CONFIGS = Path(__file__).parents[1] / "configs"

# 24 rows a source, 4 held out: 5 steps of math, then 7 of general with 5 rows of math. In float32
# on every machine: in bfloat16 a processor compiles each shape of a product, a tenth of a run.
TINY = """
seed_everything: 0
trainer: {configs}/trainer.yaml
trainer.precision: 32-true
model: {{base: world://base, quantization: fp32, lora: {{r: 4, lora_alpha: 8, lora_dropout: 0.1}}}}
corpus:
  sources: {{math: {{path: world://data/math.jsonl}}, general: {{path: world://data/general.jsonl}}}}
  val_rows: 4
evaluation:
  every_n_steps: 4
  benchmarks:
    world_math:
      class_path: sft_lab.evaluation.benchmarks.world.WorldMath
      init_args: {{path: world://data/world_math.jsonl, source: math, max_new_tokens: 4}}
checkpoint: {{every_n_steps: 2}}
data:
  k: 1/4
  batch_size: 4
  micro_batch_size: 2
  stages:
    first: {{mixture: {{math: 1}}, epochs: 1, lr: 1e-2}}
    second: {{mixture: {{general: 1, math: "${{data.k}}"}}, epochs: 1, lr: 5e-3}}
"""
EVALUATED_STEPS = [0, 4, 5, 8, 12]

# Fixes the scores of a run of the tiny config, one per evaluation.
SCRIPTED = '''
from sft_lab.evaluation.benchmark import Benchmark, Verdict


class Scripted(Benchmark):
    """Gets 0, 2, 3, 1 and 2 of 4 items right, one evaluation after the other."""

    score_names = ("accuracy",)
    right = (0, 2, 3, 1, 2)
    evaluations = 0

    def grade(self, items, completions):
        right = self.right[self.evaluations % 5]
        self.evaluations += 1
        return [Verdict({"accuracy": n < right}, text) for n, text in enumerate(completions)]
'''
SCRIPTED_CONFIG = """
evaluation:
  benchmarks:
    scripted:
      class_path: scripted.Scripted
      init_args: {path: world://data/world_math.jsonl, source: math, max_new_tokens: 2}
"""


@dataclass(frozen=True)
class CommandOutput:
    """A command's exit code and output."""

    code: Any
    out: str
    err: str


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class AsciiStream(io.TextIOWrapper):
    """A stream that can encode ASCII only, until it is reconfigured."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding="ascii")

    def getvalue(self) -> str:
        self.flush()
        return self.bytes.getvalue().decode("ascii")


@dataclass(frozen=True)
class Lab:
    """Runs the command line in a folder with ``tiny.yaml``, over the tiny world.

    Runs save no drawings, which take 40 % of their time, unless ``draws``.
    """

    folder: Path
    world: Path
    draws: bool = False

    def __call__(
        self, *arguments: str, stream: io.StringIO | AsciiStream | None = None
    ) -> CommandOutput:
        from sft_lab.commands.main import main

        out, err = stream or io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            if not self.draws:
                leave_out_drawings(patch)
            patch.chdir(self.folder)
            patch.syspath_prepend(str(self.folder))
            patch.setenv("SFT_LAB_WORLD", str(self.world))
            # MLflow sets it itself, so have MonkeyPatch restore it afterwards.
            patch.setenv("MLFLOW_TRACKING_URI", "")
            patch.delenv("MLFLOW_TRACKING_URI")
            try:
                code: Any = main(list(arguments))
            except SystemExit as stop:
                code = stop.code
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return CommandOutput(code, out.getvalue(), err.getvalue())

    def fit(self, *arguments: str, stream: io.StringIO | None = None) -> CommandOutput:
        return self("fit", "--config=tiny.yaml", *arguments, stream=stream)

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        return path

    @property
    def store(self) -> Any:
        from sft_lab.runs.store import RunStore

        return RunStore(f"sqlite:///{self.folder}/mlruns/mlflow.db")

    @property
    def runs(self) -> list[Any]:
        """The folder's runs, newest first; empty if there is no store."""
        return self.store.runs() if (self.folder / "mlruns/mlflow.db").exists() else []

    @property
    def run(self) -> Any:
        (run,) = self.runs
        return run

    def points(self, key: str, run_id: str | None = None) -> dict[int, float]:
        """Return a metric's points by step; fail if a step was logged twice."""
        run_id = run_id or self.run.info.run_id
        history = self.store.client.get_metric_history(run_id, key)
        assert len({point.step for point in history}) == len(history), key
        return {point.step: point.value for point in sorted(history, key=lambda p: p.step)}

    def counts(self, key: str, run_id: str | None = None) -> dict[int, int]:
        """How many marks a score is the mean of, by step."""
        from sft_lab.runs.evaluations import read_points

        points = read_points(self.store, run_id or self.run.info.run_id)
        return {point.step: point.scores[key].n for point in points if key in point.scores}

    def artifact(self, path: str) -> Path:
        return Path(self.store.client.download_artifacts(self.run.info.run_id, path))

    def json(self, path: str) -> Any:
        return json.loads(self.artifact(path).read_text(encoding="utf-8"))

    def logged_model(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Load the run's logged model in the lab's folder, as a person does."""
        import mlflow

        [output] = self.run.outputs.model_outputs
        monkeypatch.chdir(self.folder)
        monkeypatch.setenv("SFT_LAB_WORLD", str(self.world))
        before = mlflow.get_tracking_uri()
        # In full: MLflow keeps a store for each address, of whatever folder it was first opened in.
        mlflow.set_tracking_uri(f"sqlite:///{self.folder}/mlruns/mlflow.db")
        try:
            return mlflow.pyfunc.load_model(f"models:/{output.model_id}")
        finally:
            mlflow.set_tracking_uri(before)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "mlruns/checkpoints" / self.run.info.run_id / "last.ckpt"


MakeLab = Callable[[Path], Lab]


@pytest.fixture(scope="session")
def make_lab(tiny_world: Path) -> MakeLab:
    def make(folder: Path) -> Lab:
        made = Lab(folder, tiny_world)
        made.write("tiny.yaml", TINY.format(configs=CONFIGS))
        made.write("scripted.py", SCRIPTED)
        made.write("scripted.yaml", SCRIPTED_CONFIG)
        return made

    return make


@pytest.fixture
def lab(make_lab: MakeLab, tmp_path: Path) -> Lab:
    """A lab in a folder of its own."""
    return make_lab(tmp_path)


def leave_out_drawings(patch: pytest.MonkeyPatch) -> None:
    for drawing, empty in (("png", b""), ("_svg", "")):
        patch.setattr(f"sft_lab.runs.run_page.RunPage.{drawing}", lambda page, e=empty: e)


def copy_tables(patch: pytest.MonkeyPatch, template: Path) -> None:
    """Let MLflow migrate its first new store, which takes seconds, and copy the tables of others.

    Args:
        patch: Undoes it.
        template: Where to keep the tables.
    """
    from mlflow.store.db import utils

    initialize = utils._initialize_tables

    def copy(engine: Any) -> None:
        path = engine.url.database
        if engine.dialect.name != "sqlite" or path in (None, "", ":memory:"):
            initialize(engine)
            return
        source, target = template, path
        if not template.exists():
            initialize(engine)
            source, target = path, template
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)

    patch.setattr(utils, "_initialize_tables", copy)


RANK = """
import sys
from pathlib import Path

import pytest

sys.path.append({tests!r})
from tiny_lab import copy_tables, leave_out_drawings

from sft_lab.launch.rank import main

with pytest.MonkeyPatch.context() as patch:
    copy_tables(patch, Path({template!r}))
    leave_out_drawings(patch)
    sys.exit(main())
"""


@pytest.fixture(scope="session", autouse=True)
def _copied_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    template = tmp_path_factory.mktemp("store") / "mlflow.db"
    program = RANK.format(tests=str(Path(__file__).parent), template=str(template))
    with pytest.MonkeyPatch.context() as patch:
        copy_tables(patch, template)
        patch.setattr("sft_lab.launch.processes._PROGRAM", program)
        yield


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after each test that MLflow exports its store to later tests and subprocesses."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class FinishedRun:
    """A successful run of the tiny config, drawings too, and its output; do not modify it."""

    lab: Lab
    outcome: CommandOutput


@pytest.fixture(scope="session")
def finished(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    lab = replace(make_lab(tmp_path_factory.mktemp("finished")), draws=True)
    outcome = lab.fit("--config=scripted.yaml", "--trainer.log_every_n_steps=1")
    assert outcome.code == 0, outcome.err
    return FinishedRun(lab, outcome)


STOPPER = '''
import psutil
from lightning import Callback


class Stop(Callback):
    """Raises, or signals this process and its children, in a window after a step."""

    def __init__(self, step: int, signal: int = 0, rank: int = 0) -> None:
        self.step, self.signal, self.rank = step, signal, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank != self.rank:
            return
        if trainer.global_step == self.step and batch_idx % 2 == 1:
            if self.signal:
                run = psutil.Process()
                for process in (*run.children(), run):
                    process.send_signal(self.signal)
            else:
                raise RuntimeError("stopped by the test")
'''


@pytest.fixture
def stopped_lab(lab: Lab) -> Iterator[Lab]:
    """A lab with ``stopper.Stop`` for ``--trainer.callbacks``."""
    lab.write("stopper.py", STOPPER)
    yield lab
    os.environ.pop("PL_GLOBAL_SEED", None)
