"""Grades completions that any model has made, from a file: what ``score`` does."""

import errno
import gzip
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Verdict, json_lines
from sft_lab.evaluation.benchmarks.gsm8k import GSM8K
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.benchmarks.ifeval.benchmark import IFEval
from sft_lab.evaluation.benchmarks.mbpp import MBPP
from sft_lab.evaluation.benchmarks.mt_bench.files import read_judgements, read_questions
from sft_lab.evaluation.benchmarks.mt_bench.ratings import rating, scores
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.score import Score
from sft_lab.terminal import format_table, percent

BENCHMARKS = ("gsm8k", "humaneval", "mbpp", "ifeval", "mt_bench")
_UNKNOWN = "no problem has this task_id"


@dataclass(frozen=True)
class Graded:
    """Graded completions.

    Attributes:
        benchmark: One of ``BENCHMARKS``.
        rows: Task id and verdict of every completion, in the file's order.
        scores: By name.
        missing: Tasks without a completion, in order; they are in no score.
        unknown: Task ids that no problem has, each once; they are in no score.
        details: What belongs to one benchmark: ``sandbox``, the level that programs ran at;
            ``unparsable``, judgements without a rating.
    """

    benchmark: str
    rows: Sequence[tuple[str, Verdict]]
    scores: Mapping[str, Score]
    missing: Sequence[str]
    unknown: Sequence[str]
    details: Mapping[str, str | int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return scores and what is missing as plain values."""
        named = {name.replace("_at_", "@"): asdict(s) for name, s in self.scores.items()}
        return {
            "benchmark": self.benchmark,
            "scores": named,
            "missing": list(self.missing),
            "unknown": list(self.unknown),
            **self.details,
        }

    def table(self) -> str:
        """Return the scores for people: percent, ratings as they are, 95 % intervals."""
        show = (lambda value: f"{value:.2f}") if self.benchmark == "mt_bench" else percent
        rows = [
            [name, show(score["value"]), show(score["low"]), show(score["high"]), str(score["n"])]
            for name, score in self.to_json()["scores"].items()
        ]
        lines = [format_table([self.benchmark, "score", "low", "high", "n"], rows)]
        ungraded = sum(verdict.marks is None for _, verdict in self.rows)
        for count, what in (
            (len(self.missing), "tasks have no completion"),
            (ungraded, "completions are in no score: an unknown task, or no rating"),
        ):
            if count:
                lines.append(f"{count:,} {what}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write one JSON row per completion: ``task_id``, ``verdicts``, ``reason``.

        Raises:
            RequestError: If the file cannot be written; a file that was there is then as it was.
        """
        lines = [
            json.dumps({"task_id": task_id, "verdicts": v.marks, "reason": v.reason}) + "\n"
            for task_id, v in self.rows
        ]
        content = "".join(lines).encode()
        if path.suffix == ".gz":
            content = gzip.compress(content, mtime=0)
        # Written beside its place and moved there whole, but a pipe or a device is written to: not
        # by its resolved name, which /dev/stdout may not have.
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
    """Whether a path is there and is no regular file."""
    return path.exists() and not path.is_file()


def check_out(path: Path, *inputs: str) -> None:
    """Make sure, before anything is graded, that a file can be written.

    Raises:
        RequestError: If it cannot, or is one of those that are read.
    """
    for given in inputs:
        if path.exists() and Path(given).exists() and path.samefile(given):
            raise RequestError(f"--out {path} is a file that is read; name another.")
    if path.is_dir():
        raise RequestError(f"--out {path} is a folder; name a file.")
    writable = path if path.exists() else path.resolve().parent
    if not os.access(writable, os.W_OK):
        missing = OSError(errno.ENOENT, "there is no such folder")
        denied = OSError(errno.EACCES, "permission denied")
        raise _unwritable(path, denied if writable.exists() else missing)


def _unwritable(path: Path, fault: OSError) -> RequestError:
    return RequestError(
        f"--out {path} cannot be written: {fault.strerror}. Name a file in a folder that is there "
        "and that you may write to."
    )


def grade_file(
    benchmark: str,
    problems: str,
    completions: str,
    *,
    sandbox: LevelChoice = "isolated",
    model: str | None = None,
) -> Graded:
    """Grade the completions of a file.

    Args:
        benchmark: One of ``BENCHMARKS``.
        problems: The benchmark's own file (also ``.gz``), of MT-Bench ``question.jsonl``.
        completions: JSONL (also ``.gz``) with ``task_id`` and ``completion``, of MT-Bench a judge's
            ``*_single.jsonl``.
        sandbox: How generated programs are contained.
        model: Whose judgements, where a file of MT-Bench holds several.

    Raises:
        RequestError: If a file or a row is unusable, or the sandbox is not to be had.
    """
    if benchmark == "mt_bench":
        return _judged(problems, completions, model)
    if model is not None:
        raise RequestError(f"--model chooses among judgements of mt_bench; {benchmark} has none.")
    grader = _grader(benchmark, problems, sandbox)
    items = {item.id: item for item in grader.items()}
    rows = _completions(completions)
    known = [(items[task_id], completion) for task_id, completion in rows if task_id in items]
    graded = [item for item, _ in known]
    verdicts = grader.grade(graded, [completion for _, completion in known])
    found = iter(verdicts)
    told = [
        (task_id, next(found) if task_id in items else Verdict(None, _UNKNOWN))
        for task_id, _ in rows
    ]
    return Graded(
        benchmark,
        told,
        grader.scores(graded, verdicts),
        missing=_without(items, (item.id for item in graded)),
        unknown=_without((task_id for task_id, _ in rows), items),
        details=grader.conditions(),
    )


def _grader(benchmark: str, problems: str, sandbox: LevelChoice) -> Benchmark:
    arguments: dict[str, Any] = {"path": problems, "max_new_tokens": 1}  # nothing is generated
    if benchmark == "gsm8k":
        return GSM8K(**arguments)
    if benchmark == "ifeval":
        return IFEval(**arguments)
    return {"humaneval": HumanEval, "mbpp": MBPP}[benchmark](**arguments, sandbox=sandbox)


def _completions(path: str) -> list[tuple[str, str]]:
    rows = []
    for line, row in json_lines(path, f"--completions {path}"):
        where = f"--completions {path}, line {line}"
        if not isinstance(row, dict):
            raise RequestError(f"{where}: a row must be an object, got {reprlib.repr(row)}.")
        for key in ("task_id", "completion"):
            if not isinstance(row.get(key), str):
                got = f"got {reprlib.repr(row[key])}" if key in row else "it is missing"
                raise RequestError(f"{where}: key '{key}' must be a string; {got}.")
        rows.append((row["task_id"], row["completion"]))
    if not rows:
        raise RequestError(f"--completions {path} has no rows.")
    return rows


def _judged(problems: str, completions: str, model: str | None) -> Graded:
    questions = read_questions(problems)
    known = {question.id for question in questions}
    tasks = [_task_id(question.id, turn) for question in questions for turn in (1, 2)]
    rows: list[tuple[str, Verdict]] = []
    ratings: list[tuple[tuple[int, int], float | None]] = []
    for judgement in read_judgements(completions, model):
        task = (judgement.question_id, judgement.turn)
        value = rating(judgement.text)
        if judgement.question_id not in known:
            verdict = Verdict(None, _UNKNOWN)
        else:
            ratings.append((task, value))
            marks = None if value is None else {"rating": value}
            verdict = Verdict(marks, judgement.text if marks else "no rating in the judgement")
        rows.append((_task_id(*task), verdict))
    found = scores(ratings, questions)
    given = [task_id for task_id, _ in rows]
    return Graded(
        "mt_bench",
        rows,
        found.by_name,
        missing=_without(tasks, given),
        unknown=_without(given, tasks),
        details={"unparsable": found.unparsable},
    )


def _task_id(question_id: int, turn: int) -> str:
    return f"MT-Bench/{question_id}/{turn}"


def _without(task_ids: Any, others: Any) -> list[str]:
    known = set(others)
    return [task_id for task_id in dict.fromkeys(task_ids) if task_id not in known]
