"""Test that published figures are equals of ours only under the paper's own protocol."""

from dataclasses import replace
from typing import Any

import pytest
from compared_runs import ENTRY, run

from sft_lab.analysis.abilities import Ability
from sft_lab.report.departures import Departure, departures_of, departures_table, differs
from sft_lab.report.published import published_for
from sft_lab.runs.record import BenchmarkRecord, SourceRecord
from sft_lab.runs.results import RunResult

ABILITIES = [
    Ability("math", "gsm8k/strict", source="math"),
    Ability("code", "humaneval/pass_at_1", source="code"),
    Ability("general", "mt_bench/mean", (1.0, 10.0), "general"),
]
SETTINGS = {
    "model.lora": "None",
    "model.quantization": "bf16",
    "data.stages.specialize.lr": "2e-05",
    "data.stages.generalize.lr": "2e-05",
    "data.stages.specialize.epochs": "3",
    "data.batch_size": "128",
    "corpus.template": "vicuna_v1.1",
}
ROWS = {"math": 110_142, "code": 20_016, "general": 86_060}
JUDGED = {"judge": "{'model': 'gpt-4', 'prompts': {}}", "num_judgements": 3}


def sources(**rows: int) -> dict[str, SourceRecord]:
    return {n: SourceRecord(f"{n}.jsonl", "", size, 0, {}) for n, size in {**ROWS, **rows}.items()}


def benchmark(items: int, **protocol: Any) -> BenchmarkRecord:
    return replace(ENTRY, items=items, protocol=protocol)


BENCHMARKS = {
    "gsm8k": benchmark(1319),
    "humaneval": benchmark(164),
    "mt_bench": benchmark(80, **JUDGED),
}


def exact(**record: Any) -> RunResult:
    """Return a run under the paper's protocol, but for parts of its record."""
    made = run("dmt", [[0], [1]])
    parts = {"sources": sources(), "benchmarks": BENCHMARKS} | record
    base = "huggyllama/llama-7b"
    return replace(made, base=base, settings=SETTINGS, record=replace(made.record, **parts))


def test_the_paper_s_own_protocol_departs_in_nothing() -> None:
    assert departures_of([exact(), exact()], ABILITIES) == []
    assert departures_table([]).rows == []
    published = published_for(["huggyllama/llama-30b"])
    assert published is not None
    assert published.label == "the paper, 33B"
    assert published.source.endswith("under this protocol.")


QLORA = {"model.lora.r": "64", "model.quantization": "nf4"}


@pytest.mark.parametrize(
    ("changed", "what", "here"),
    [
        (replace(exact(), base="meta-llama/Llama-2-7b-hf"), "base", "meta-llama/Llama-2-7b-hf"),
        (
            replace(exact(), settings={**SETTINGS, **QLORA}),
            "training",
            "LoRA of rank 64 on a base in nf4",
        ),
        (
            replace(exact(), settings={**SETTINGS, "data.stages.generalize.lr": "0.0002"}),
            "learning rate",
            "2e-05 and 0.0002",
        ),
        (
            replace(exact(), settings={**SETTINGS, "corpus.template": "alpaca"}),
            "chat template",
            "alpaca",
        ),
        (exact(sources=sources(math=7473)), "math data", "7,473 rows of math.jsonl"),
        (
            exact(benchmarks={**BENCHMARKS, "mt_bench": benchmark(80, judge="", num_judgements=1)}),
            "general benchmark",
            "mt_bench/mean, 80 items, judgements of an answer: 1",
        ),
        (
            exact(benchmarks={**BENCHMARKS, "gsm8k": benchmark(100)}),
            "math benchmark",
            "gsm8k/strict, 100 items",
        ),
    ],
)
def test_what_differs_is_named_with_both_values(changed: RunResult, what: str, here: str) -> None:
    [departure] = departures_of([exact(), changed], ABILITIES)
    assert (departure.what, departure.here) == (what, here)
    assert f"{what}: {here} (the paper: {departure.paper})" in differs([departure])


def test_another_score_or_benchmark_is_named() -> None:
    ifeval = {**BENCHMARKS, "ifeval": benchmark(541)}
    others = [
        Ability("math", "gsm8k/flexible", source="math"),
        ABILITIES[1],
        Ability("general", "ifeval/prompt_strict", source="general"),
    ]
    found = departures_of([exact(benchmarks=ifeval)], others)
    assert [d.here for d in found] == [
        "gsm8k/flexible, 1,319 items",
        "ifeval/prompt_strict, 541 items",
    ]


def test_published_figures_are_under_a_line_that_names_the_differences() -> None:
    published = published_for(["Llama-2-7b-hf"], [Departure("base", "LLaMA-1", "Llama-2-7b-hf")])
    assert published is not None
    assert published.label == "the paper, 7B, another protocol"
    assert "base: Llama-2-7b-hf (the paper: LLaMA-1)" in published.source
