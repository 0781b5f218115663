"""The Python API for notebooks: train, load, compare and evaluate.

import sft_lab

run = sft_lab.fit("configs/world/dmt.yaml", {"data.k": "1/64"})
run.scores[["step", "benchmark", "value"]]
sft_lab.compare([run, "sequential seed 0"])
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from sft_lab.analysis.comparison import RunComparison
    from sft_lab.evaluation.benchmark import Benchmark
    from sft_lab.evaluation.evaluator import Evaluation
    from sft_lab.runs.results import RunResult
    from sft_lab.runs.store import RunStore

TRACKING_URI = "sqlite:///mlruns/mlflow.db"


@dataclass(frozen=True)
class LoadedRun:
    """A recorded run.

    Attributes:
        result: What it measured at every evaluation.
        store: The MLflow store that holds it.
    """

    result: "RunResult"
    store: "RunStore"

    @property
    def run_id(self) -> str:
        """The run's id in MLflow."""
        return self.result.run_id

    @property
    def name(self) -> str:
        """The run's name."""
        return self.result.name

    @property
    def scores(self) -> "pd.DataFrame":
        """Every score of every evaluation; see ``analysis.frames.scores_frame``."""
        from sft_lab.analysis.frames import scores_frame

        return scores_frame(self.result)

    @property
    def curves(self) -> "pd.DataFrame":
        """Every logged metric by step; see ``analysis.frames.curves_frame``."""
        from sft_lab.analysis.frames import curves_frame

        return curves_frame(self.store, self.result)

    def answers(self, step: int | None = None) -> "pd.DataFrame":
        """Return every answer with its marks; see ``analysis.frames.answers_frame``.

        Args:
            step: The evaluation to read; all of them by default.
        """
        from sft_lab.analysis.frames import answers_frame

        return answers_frame(self.store, self.result, step)


def fit(
    config: str | Path | Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    ckpt_path: str | None = None,
    from_stage: str | None = None,
) -> LoadedRun:
    """Train a run and return what it recorded.

    Args:
        config: A config file, or several, of which later ones win.
        overrides: Values by dotted key, which win over the files.
        ckpt_path: ``last`` or a checkpoint, to resume a run.
        from_stage: ``RUN@STAGE``, to start from the end of another run's stage.

    Raises:
        RequestError: If the request is wrong, before anything is loaded or written.
    """
    from sft_lab.launch.parser import parse_files
    from sft_lab.launch.run import fit as fit_run
    from sft_lab.terminal import silence

    silence()
    files = [config] if isinstance(config, str | Path) else list(config)
    flags = [
        f"--{flag}={value}"
        for flag, value in (("ckpt_path", ckpt_path), ("from", from_stage))
        if value is not None
    ]
    with _worded_as_call(overrides or {}), _quiet_transformers():
        parsed = parse_files([str(file) for file in files], overrides or {}, flags)
        return load_run(fit_run(parsed), parsed.tracking_uri)


@contextmanager
def _worded_as_call(overrides: Mapping[str, Any]) -> Iterator[None]:
    """Let errors and notes name what the caller of ``fit`` wrote instead of command-line flags."""
    names = {"ckpt_path": "ckpt_path", "from": "from_stage", **{key: key for key in overrides}}
    flags = re.compile(rf"--({'|'.join(map(re.escape, names))})(?![\w.-])")

    def worded(text: str) -> str:
        return flags.sub(lambda found: names[found[1]], text).replace("same command", "same call")

    try:
        yield
    except BaseException as fault:
        if isinstance(fault, ValueError | RuntimeError):
            fault.args = tuple(worded(a) if isinstance(a, str) else a for a in fault.args)
        if notes := getattr(fault, "__notes__", None):
            fault.__notes__ = [worded(note) for note in notes]
        raise


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' advice and progress bars out of a notebook, and leave it as it was."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def load_run(run: str, tracking_uri: str = TRACKING_URI) -> LoadedRun:
    """Load a recorded run.

    Args:
        run: Its id, a unique beginning of one, or its name.
        tracking_uri: The MLflow store.

    Raises:
        RequestError: If there is no such run, or it has recorded no evaluation yet.
    """
    from sft_lab.runs.results import read_result
    from sft_lab.runs.store import RunStore
    from sft_lab.terminal import silence

    silence()
    store = RunStore(tracking_uri)
    return LoadedRun(read_result(store, store.find(run)), store)


def compare(
    runs: Sequence[LoadedRun | str],
    reference: str | None = None,
    *,
    over_seeds: bool = False,
    tracking_uri: str | None = None,
) -> "RunComparison":
    """Compare runs at their ends with a reference, and each with its own best boundary.

    Args:
        runs: Runs, or their ids or names; all of one store.
        reference: Id or name of the run to compare with; the first by default.
        over_seeds: Average runs whose names differ in ``seed N`` only.
        tracking_uri: The store of runs given by name; by default that of the loaded runs.

    Returns:
        The differences with their paired tests and p values corrected by Holm's method.

    Raises:
        RequestError: If there is no such run, or the runs were measured under other protocols.
    """
    from sft_lab.analysis.comparison import compare as compare_runs
    from sft_lab.runs.store import RunStore
    from sft_lab.terminal import silence

    loaded = [run for run in runs if isinstance(run, LoadedRun)]
    silence()
    uri = tracking_uri or (loaded[0].store.tracking_uri if loaded else TRACKING_URI)
    names = [run.run_id if isinstance(run, LoadedRun) else run for run in runs]
    return compare_runs(RunStore(uri), names, reference, over_seeds)


def evaluate(
    model: Any,
    tokenizer: Any,
    benchmarks: "Mapping[str, Benchmark]",
    *,
    template: str | None = None,
    batch_size: int = 64,
) -> "Evaluation":
    """Score any causal language model of transformers on benchmarks; the model is left as it was.

    Args:
        model: A causal language model, or PEFT's wrapper around one.
        tokenizer: Its tokenizer.
        benchmarks: Benchmarks by name, such as ``{"gsm8k": GSM8K("test.jsonl", 256)}``.
        template: Name of a chat template, for a tokenizer that has none.
        batch_size: Answers generated at a time.

    Returns:
        Scores with intervals by metric key, and every answer with its verdict.

    Raises:
        RequestError: If a benchmark's file is unusable or its grading is unavailable here.
    """
    from sft_lab.data.rendering import Renderer
    from sft_lab.errors import RequestError
    from sft_lab.evaluation.evaluator import Evaluator
    from sft_lab.evaluation.suite import EvaluationSuite
    from sft_lab.terminal import silence

    silence()
    if not benchmarks:
        raise RequestError("evaluate needs at least one benchmark, such as {'gsm8k': GSM8K(...)}.")
    suite = EvaluationSuite(dict(benchmarks), batch_size=batch_size)
    for benchmark in benchmarks.values():
        benchmark.check()
    with _quiet_transformers():
        evaluator = Evaluator(suite, Renderer(tokenizer, template), dtype=model.dtype)
        return evaluator.evaluate(model, step=0)
