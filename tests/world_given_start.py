"""Score models on the embedded world with the first word of every answer given, and not given.

    python -m sft_lab export --ckpt_path CKPT --out merged --what merged
    python tests/world_given_start.py sft_lab/world/base merged

What comes back when the first word is given (the first number, ``return`` with its indent, or the
first word of a sentence) was not lost: the model could not begin. The base is the control, since a
first word also helps a model that never learned the answer.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typing_extensions import override

import sft_lab
from sft_lab.config.compose import best_precision
from sft_lab.evaluation.benchmark import Answer, Benchmark, Item
from sft_lab.evaluation.benchmarks.world import WorldCode, WorldGeneral, WorldMath
from sft_lab.evaluation.evaluated_model import EvaluatedModel


def first_word(answer: str) -> str:
    r"""Return an answer up to the end of its first word.

    >>> first_word("    return max(a, b)"), first_word("12-5=7.\n#### 7")
    ('    return', '12')
    """
    match = re.match(r"\W*\w+", answer)
    return match[0] if match else answer


class GivenStart(Benchmark):
    """Continues the first word of the reference answer; a mixin before a benchmark of the world."""

    @override
    def measure(
        self, items: Sequence[Item], prompts: Sequence[Sequence[int]], model: EvaluatedModel
    ) -> list[list[Answer]]:
        starts = [first_word(self.reference_answer(item) or "") for item in items]
        encode = model.renderer.tokenizer.encode
        begun = [[*p, *encode(start)] for p, start in zip(prompts, starts, strict=True)]
        rests = [c.answer for c in model.complete(begun, self.max_new_tokens)]
        answers = [start + rest for start, rest in zip(starts, rests, strict=True)]
        verdicts = self.grade(items, answers)
        return [[Answer(*each)] for each in zip(items, answers, verdicts, strict=True)]


class GivenMath(GivenStart, WorldMath):
    """``WorldMath`` with the first number given."""


class GivenCode(GivenStart, WorldCode):
    """``WorldCode`` with ``return`` and its indent given."""


class GivenGeneral(GivenStart, WorldGeneral):
    """``WorldGeneral`` with the first word given."""


def benchmarks(given: bool) -> dict[str, Benchmark]:
    """Return the world's benchmarks."""
    math, code, general = (
        (GivenMath, GivenCode, GivenGeneral) if given else (WorldMath, WorldCode, WorldGeneral)
    )
    limited: dict[str, Any] = {"sandbox": "isolated_or_limited"}
    return {
        "math": math("world://data/world_math.jsonl", 48),
        "code": code("world://data/world_code.jsonl", 36, **limited),
        "general": general("world://data/world_general.jsonl", 24),
    }


def main() -> None:
    """Print a row for every model and condition: right answers in any form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="folders in Hugging Face format")
    options = parser.parse_args()
    dtype = torch.bfloat16 if best_precision() == "bf16-mixed" else torch.float32
    print("| model | first word | math | code | general |\n|---|---|---|---|---|")
    for folder in options.models:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for given in (False, True):
            found = sft_lab.evaluate(model, tokenizer, benchmarks(given), batch_size=200)
            scores = [found.scores[f"{name}/format_free"].value for name in benchmarks(given)]
            cells = " | ".join(f"{100 * value:.1f}" for value in scores)
            print(f"| {folder} | {'given' if given else 'not given'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
