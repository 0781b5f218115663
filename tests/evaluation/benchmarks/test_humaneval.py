import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lab.evaluation.benchmark import Item
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.sandbox.sandbox import isolation_fault

pytestmark = pytest.mark.skipif(isolation_fault() is not None, reason="no isolation here")


def test_the_prompt_s_helpers_cannot_be_redefined(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("humaneval/HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    benchmark = HumanEval(path=str(path), max_new_tokens=1)
    cheats = {
        32: ("poly", "lambda xs, x: 0", "lambda xs: 0"),
        38: ("encode_cyclic", "lambda s: s", "lambda s: s"),
        50: ("encode_shift", "lambda s: s", "lambda s: s"),
    }
    for number, (helper, redefined, cheat) in cheats.items():
        row = rows[number]
        item = Item(row["task_id"], (), row)
        answer = f"{row['prompt']}    pass\n{helper} = {redefined}\n{row['entry_point']} = {cheat}"
        right = row["prompt"] + row["canonical_solution"]
        verdicts = benchmark.grade([item, item], [answer, right])
        assert [verdict.marks for verdict in verdicts] == [{"passed": False}, {"passed": True}]
