"""Score the base zero-shot; the scores are stored with its weights."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_lab.evaluation.benchmark import Benchmark, Item
from sft_lab.evaluation.benchmarks.world import WorldCode, WorldGeneral, WorldMath
from sft_lab.evaluation.generation import batches_longest_first, generate

BATCH_SIZE = 50
MAX_NEW_TOKENS = 64


def benchmarks(data: Path) -> dict[str, Benchmark]:
    """Return the world's benchmarks by metric group, reading the files of a data folder."""
    return {
        "world_math": WorldMath(str(data / "world_math.jsonl"), MAX_NEW_TOKENS),
        "world_code": WorldCode(str(data / "world_code.jsonl"), MAX_NEW_TOKENS, sandbox="limited"),
        "world_general": WorldGeneral(str(data / "world_general.jsonl"), MAX_NEW_TOKENS),
    }


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> list[str]:
    """Return the greedy completion of every item under the tokenizer's chat template."""
    texts = [
        tokenizer.apply_chat_template(
            list(item.messages), add_generation_prompt=True, tokenize=False
        )
        for item in items
    ]
    prompts: list[list[int]] = tokenizer(texts)["input_ids"]
    completions = [""] * len(items)
    for batch in batches_longest_first([len(prompt) for prompt in prompts], BATCH_SIZE):
        new_ids = generate(
            model,
            [prompts[index] for index in batch],
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_ids=[tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        for index, ids in zip(batch, new_ids, strict=True):
            completions[index] = str(tokenizer.decode(ids))
    return completions


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    by_name: Mapping[str, Benchmark],
) -> dict[str, float]:
    """Return the share of items solved by benchmark, in [0, 1]: zero-shot and greedy."""
    scores = {}
    for name, benchmark in by_name.items():
        items = benchmark.items()
        verdicts = benchmark.grade(items, complete(model, tokenizer, items))
        scores[name] = benchmark.scores(items, verdicts)[benchmark.score_names[0]].value
    return scores
