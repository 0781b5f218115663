"""Run IFEval as a benchmark: prompts with verifiable instructions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.ifeval.grading import check_row, grade
from sft_lab.metrics.score import Score, accuracy, mean_score


class IFEval(Benchmark):
    """Score the share of prompts, and of instructions, followed strictly and loosely.

    Rows are the data set's own; the item of ``key`` n is ``IFEval/n``. A prompt is followed if all
    its instructions are. Protocol: the prompt alone is asked. See ``ifeval.grading.grade``.

    Source: Zhou et al. (2023), "Instruction-Following Evaluation for Large Language Models".
    """

    score_names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    row_fields: ClassVar[Mapping[str, type]] = {"key": int, "prompt": str}

    @override
    def check_row(self, row: Mapping[str, Any]) -> None:
        super().check_row(row)
        check_row(row)

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        return Item(f"IFEval/{row['key']}", ({"role": "user", "content": row["prompt"]},), row)

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for item, completion in zip(items, completions, strict=True):
            followed = grade(item.row, completion)
            missed = [
                name
                for name, loose in zip(item.row["instruction_id_list"], followed.loose, strict=True)
                if not loose
            ]
            reason = f"not followed: {', '.join(missed)}" if missed else "followed"
            verdicts.append(Verdict({"strict": followed.strict, "loose": followed.loose}, reason))
        return verdicts

    @override
    def scores(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
        found: dict[str, Score] = {}
        ids = [item.id for item in items]
        once = len(set(ids)) == len(ids)  # several answers to a prompt are not independent
        for kind in ("strict", "loose"):
            prompts = [parts(verdict, kind) for verdict in verdicts]
            if prompts:
                whole = [all(marks) for marks in prompts]
                each = [mark for marks in prompts for mark in marks]
                owners = [name for name, marks in zip(ids, prompts, strict=True) for _ in marks]
                found[f"prompt_{kind}"] = accuracy(whole) if once else mean_score(whole, ids)
                found[f"instruction_{kind}"] = accuracy(each) if once else mean_score(each, owners)
        return {name: found[name] for name in self.score_names if name in found}

    @override
    def mark_of(self, score_name: str) -> str | None:
        # A prompt has several instructions, so the scores of those are no means over prompts.
        return {"prompt_strict": "strict", "prompt_loose": "loose"}.get(score_name)


def parts(verdict: Verdict, kind: str) -> tuple[bool, ...]:
    """Return the marks of one kind, an instruction each."""
    assert verdict.marks is not None  # every response can be graded
    marks = verdict.marks[kind]
    assert isinstance(marks, tuple)
    return marks
