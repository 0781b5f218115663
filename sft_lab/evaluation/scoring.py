"""Grade a file of completions of any model, for the command ``score``."""

import errno
import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Verdict
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.score import Score
from sft_lab.terminal import counted, format_table, percent

_PACKAGE = "sft_lab.evaluation.benchmarks"
BENCHMARKS = {
    "gsm8k": f"{_PACKAGE}.gsm8k.GSM8K",
    "humaneval": f"{_PACKAGE}.humaneval.HumanEval",
    "mbpp": f"{_PACKAGE}.mbpp.MBPP",
    "ifeval": f"{_PACKAGE}.ifeval.benchmark.IFEval",
    "mt_bench": f"{_PACKAGE}.mt_bench.benchmark.MTBench",
}
"""Class paths of the shipped benchmarks by their short names."""


@dataclass(frozen=True)
class Graded:
    """Graded completions.

    Attributes:
        benchmark: Its short name or class path.
        rows: Task id and verdict of every completion, in the file's order.
        scores: By name.
        missing: Tasks without a completion, in order; not part of any score.
        unknown: Task ids without a problem, each once; not part of any score.
        is_share: Whether scores lie in [0, 1]; ratings are printed as they are.
        details: Facts about one benchmark: ``sandbox``, the level at which programs ran;
            ``unparsable``, the number of judgements without a rating; ``reasoning_cut``, the number
            of completions graded without their reasoning, and ``reasoning_unclosed``, the number of
            these without an end of the reasoning.
    """

    benchmark: str
    rows: Sequence[tuple[str, Verdict]]
    scores: Mapping[str, Score]
    missing: Sequence[str]
    unknown: Sequence[str]
    is_share: bool = True
    details: Mapping[str, str | int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return scores, missing and unknown tasks as plain values."""
        named = {name.replace("_at_", "@"): asdict(s) for name, s in self.scores.items()}
        return {
            "benchmark": self.benchmark,
            "scores": named,
            "missing": list(self.missing),
            "unknown": list(self.unknown),
            **self.details,
        }

    def table(self) -> str:
        """Return the scores as a table: shares in percent, ratings unscaled, 95 % intervals."""
        show = percent if self.is_share else (lambda value: f"{value:.2f}")
        rows = [
            [name, show(score["value"]), show(score["low"]), show(score["high"]), str(score["n"])]
            for name, score in self.to_json()["scores"].items()
        ]
        lines = [format_table([self.benchmark, "score", "low", "high", "n"], rows)]
        ungraded = sum(verdict.marks is None for _, verdict in self.rows)
        unknown = set(self.unknown)
        expected = [*self.missing, *(task for task, _ in self.rows if task not in unknown)]
        cut, unclosed = (
            int(self.details.get(name, 0)) for name in ("reasoning_cut", "reasoning_unclosed")
        )
        for count, one, many, what in (
            (len(self.missing), "task has", "tasks have", "no completion"),
            (
                *(ungraded, "completion is", "completions are"),
                "in no score: an unknown task, or no rating",
            ),
            (
                *(cut, "completion was", "completions were"),
                "graded without the reasoning, up to </think>",
            ),
            (
                *(unclosed, "of these never ends its", "of these never end their"),
                "reasoning, which counts as no answer",
            ),
        ):
            if count:
                lines.append(f"{counted(count, one, many)} {what}")
        if self.unknown:
            lines.append(
                f"{counted(len(unknown), 'task is', 'tasks are')} unknown, such as "
                f"{self.unknown[0]!r}; expected are ids such as {expected[0]!r}"
            )
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write one JSON row per completion: ``task_id``, ``verdicts``, ``reason``.

        Raises:
            RequestError: If the file cannot be written; an existing file is then unchanged.
        """
        lines = [
            json.dumps({"task_id": task_id, "verdicts": v.marks, "reason": v.reason}) + "\n"
            for task_id, v in self.rows
        ]
        content = "".join(lines).encode()
        if path.suffix == ".gz":
            content = gzip.compress(content, mtime=0)
        # Written next to its target and moved into place. A pipe or a device is written directly,
        # and not by its resolved name, which /dev/stdout may lack.
        target = path if is_special(path) else path.resolve()
        beside = target if is_special(path) else target.with_name(f".{target.name}.{os.getpid()}")
        try:
            beside.write_bytes(content)
            if beside != target:
                os.replace(beside, target)
        except OSError as fault:
            if beside != target:
                beside.unlink(missing_ok=True)
            raise _unwritable(path, fault) from fault


def is_special(path: Path) -> bool:
    """Return whether a path exists and is not a regular file."""
    return path.exists() and not path.is_file()


def check_out(path: Path, *inputs: str) -> None:
    """Check, before anything is graded, that a file can be written.

    Raises:
        RequestError: If it cannot, or is one of the input files.
    """
    for given in inputs:
        if path.exists() and Path(given).exists() and path.samefile(given):
            raise RequestError(f"--out {path} is one of the input files; name another.")
    if path.is_dir():
        raise RequestError(f"--out {path} is a folder; name a file.")
    writable = path if path.exists() else path.resolve().parent
    if not os.access(writable, os.W_OK):
        missing = OSError(errno.ENOENT, "no such folder")
        denied = OSError(errno.EACCES, "permission denied")
        raise _unwritable(path, denied if writable.exists() else missing)


def _unwritable(path: Path, fault: OSError) -> RequestError:
    return RequestError(
        f"--out {path} cannot be written: {fault.strerror}. Name a file in an existing folder "
        "that you may write to."
    )


def find_benchmark(name: str) -> type[Benchmark]:
    """Return a benchmark's class by its short name or class path.

    Raises:
        RequestError: If there is no such class.
    """
    short = name.lower().replace("-", "_")
    if short not in BENCHMARKS and "." not in name:
        raise RequestError(
            f"score: no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, or give the class "
            "path of your own, such as my_benchmarks.Trivia."
        )
    module, _, class_name = BENCHMARKS.get(short, name).rpartition(".")
    try:
        found = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as fault:
        raise RequestError(
            f"score: the benchmark {name} cannot be imported: {fault}. Its module must be in this "
            "folder or on PYTHONPATH."
        ) from fault
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise RequestError(f"score: {name} must be a subclass of sft_lab's Benchmark.")
    return found


def grade_file(
    benchmark: str,
    problems: str | None,
    completions: str,
    *,
    sandbox: LevelChoice = "isolated",
    model: str | None = None,
) -> Graded:
    """Grade the completions of a file.

    Args:
        benchmark: One of ``BENCHMARKS``, or the class path of another.
        problems: The benchmark's own file (also ``.gz``) or hub name; by default the published one.
        completions: JSONL (also ``.gz``) or Parquet with ``task_id`` and ``completion`` (also
            ``solution`` or ``response``); for MT-Bench, a judge's ``*_single.jsonl``.
        sandbox: How generated programs are contained.
        model: The model whose rows to grade, if a file holds several models.

    Raises:
        RequestError: If a file or a row is unusable, no completion answers a problem, or the
            sandbox is unavailable.
    """
    kind = find_benchmark(benchmark)
    problems = problems or kind.published
    if problems is None:
        raise RequestError(f"--problems: {benchmark} has no published items; name their file.")
    grader = kind.for_grading(problems, sandbox)
    grader.key = "--problems: "
    graded = grader.grade_file(completions, model)
    known = [(item, verdict) for _, item, verdict in graded.rows if item is not None]
    if not known:
        raise RequestError(
            f"--completions {completions}: no row answers a problem of {problems}: its first "
            f"task is {graded.rows[0][0]!r}, expected are ids such as {graded.tasks[0]!r}."
        )
    answered = [task_id for task_id, _, _ in graded.rows]
    return Graded(
        benchmark if "." in benchmark else benchmark.lower().replace("-", "_"),
        [(task_id, verdict) for task_id, _, verdict in graded.rows],
        grader.scores([item for item, _ in known], [verdict for _, verdict in known]),
        missing=_without(graded.tasks, answered),
        unknown=_without(answered, graded.tasks),
        is_share=grader.scale == (0, 1),
        details=graded.details,
    )


def _without(task_ids: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [task_id for task_id in dict.fromkeys(task_ids) if task_id not in known]
