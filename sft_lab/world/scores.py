"""The base's own zero-shot scores, which stand beside its weights."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from sft_lab.evaluation.rules import follows

BATCH_SIZE = 50
MAX_NEW_TOKENS = 64
CODE_TIMEOUT_S = 5
CODE_MEMORY_BYTES = 512 * 1024 * 1024


def is_correct(completion: str, item: Mapping[str, Any]) -> bool:
    """Say whether a completion solves a benchmark item of the world, told apart by their keys."""
    if "answer" in item:
        return answers(completion, item["answer"])
    if "rule" in item:
        return follows(completion, item["rule"])
    return passes(completion, item)


def answers(completion: str, answer: str) -> bool:
    r"""Say whether a worked answer ends in ``#### N`` with the right number.

    >>> answers("First 2+3=5.\n#### 5", "5")
    True
    >>> answers("5", "5")
    False
    """
    found = re.search(r"####\s*(-?[0-9]+)\s*$", completion)
    return found is not None and int(found[1]) == int(answer)


def passes(completion: str, item: Mapping[str, Any]) -> bool:
    """Say whether a function body passes its item's tests, run in a limited process of its own."""
    limits = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, ({CODE_TIMEOUT_S}, {CODE_TIMEOUT_S}))\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({CODE_MEMORY_BYTES}, {CODE_MEMORY_BYTES}))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    )
    program = (
        f"{limits}\n{item['prompt']}{completion}\n\n{item['test']}\ncheck({item['entry_point']})\n"
    )
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CODE_TIMEOUT_S,
            check=False,
        )
    except (subprocess.TimeoutExpired, ValueError):  # ValueError: a null byte in the completion
        return False
    return run.returncode == 0


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return the greedy completion of every item."""
    completions = []
    for first in range(0, len(items), BATCH_SIZE):
        prompts = [
            tokenizer.apply_chat_template(
                item["messages"], add_generation_prompt=True, tokenize=False
            )
            for item in items[first : first + BATCH_SIZE]
        ]
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        # transformers types ``generate`` for a protocol of its own that no model class meets.
        output_ids = model.generate(  # type: ignore[misc]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        new_ids = output_ids[:, batch["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return completions


def score(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Return the share of items solved by benchmark, in [0, 1]: zero-shot, greedy, own template."""
    scores = {}
    for name, items in benchmarks.items():
        completions = complete(model, tokenizer, items)
        solved = [is_correct(*pair) for pair in zip(completions, items, strict=True)]
        scores[name] = sum(solved) / len(items)
    return scores
