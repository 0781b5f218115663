from pathlib import Path
from typing import Any

import pytest

from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.benchmarks.world import WorldMath
from sft_lab.evaluation.prompts import Prompts


@pytest.fixture
def benchmark(tiny_world: Path) -> WorldMath:
    return WorldMath(str(tiny_world / "data" / "world_math.jsonl"), max_new_tokens=4)


def test_prompts_are_rendered_as_in_training(benchmark: WorldMath, chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, None)
    prompts = Prompts(benchmark.items(), renderer)
    assert prompts.indices() == [0, 1, 2, 3]
    assert prompts.token_ids[2] == renderer.prompt_ids(benchmark.items()[2].messages)


def test_fewer_items_are_a_subset_of_more(benchmark: WorldMath, chat_tokenizer: Any) -> None:
    prompts = Prompts(benchmark.items(), Renderer(chat_tokenizer, None))
    used = [set(prompts.indices(count)) for count in (1, 2, 3, None)]
    assert list(map(len, used)) == [1, 2, 3, 4]
    assert used[0] < used[1] < used[2] < used[3]
