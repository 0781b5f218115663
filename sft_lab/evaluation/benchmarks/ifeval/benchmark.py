"""Run IFEval as a benchmark: prompts with verifiable instructions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.ifeval.grading import check_row, grade


class IFEval(Benchmark):
    """Score the share of prompts, and of instructions, followed strictly and loosely.

    Rows are the data set's own; the item of ``key`` n is ``IFEval/n``. A prompt is followed if all
    its instructions are. Protocol: the prompt alone is asked. See ``ifeval.grading.grade``.

    Source: Zhou et al. (2023), "Instruction-Following Evaluation for Large Language Models".
    """

    published = "google/IFEval"
    local_file = (
        "instruction_following_eval/data/input_data.jsonl of github.com/google-research/"
        "google-research"
    )
    score_names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    row_fields: ClassVar[Mapping[str, type]] = {
        "key": int,
        "prompt": str,
        "instruction_id_list": list,
        "kwargs": list,
    }
    right_row: ClassVar[Mapping[str, Any]] = {
        "key": 1000,
        "prompt": "Describe the sea without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }

    @override
    def agrees_with(self) -> Mapping[str, str]:
        return dict.fromkeys(self.score_names, "instruction_following_eval (arXiv 2311.07911)")

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
            if followed.too_slow:
                slow = ", ".join(followed.too_slow)
                reason += f"; a pattern of the item took too long: {slow}"
            verdicts.append(Verdict({"strict": followed.strict, "loose": followed.loose}, reason))
        return verdicts

    @override
    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        assert verdict.marks is not None  # every response can be graded
        found: dict[str, Sequence[float]] = {}
        for kind in ("strict", "loose"):
            followed = verdict.marks[kind]
            assert isinstance(followed, tuple)
            found |= {f"prompt_{kind}": [all(followed)], f"instruction_{kind}": followed}
        return found

    @override
    def mark_of(self, score_name: str) -> str | None:
        # A prompt has several instructions, so instruction scores are not means over prompts.
        return {"prompt_strict": "strict", "prompt_loose": "loose"}.get(score_name)
