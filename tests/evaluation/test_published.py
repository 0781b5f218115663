"""Benchmarks by hub name, read from the hub's cache, and the files that hold the same items."""

from pathlib import Path
from typing import Any

import pytest
from benchmark_files import GSM8K as GSM8K_ROWS
from benchmark_files import INSTRUCTIONS, add_benchmarks, write_benchmarks
from conftest import write_jsonl
from hub_cache import HubCache

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.benchmarks.gsm8k import GSM8K
from sft_lab.evaluation.benchmarks.humaneval import HumanEval
from sft_lab.evaluation.benchmarks.ifeval.benchmark import IFEval
from sft_lab.evaluation.benchmarks.mbpp import MBPP
from sft_lab.evaluation.benchmarks.mt_bench.benchmark import MTBench
from sft_lab.evaluation.benchmarks.mt_bench.files import read_judge_prompts, read_references
from sft_lab.evaluation.benchmarks.mt_bench.ratings import check_references
from sft_lab.evaluation.suite import EvaluationSuite

CODE: dict[str, Any] = {"max_new_tokens": 4, "sandbox": "isolated_or_limited"}


def test_published_rows_equal_those_of_the_benchmark_s_own_file(
    hub_cache: HubCache, tmp_path: Path
) -> None:
    folder = write_benchmarks(tmp_path / "files")
    write_jsonl(folder / "ifeval/input_data.jsonl", INSTRUCTIONS)
    add_benchmarks(hub_cache)
    for kind, file, settings in (
        (GSM8K, "gsm8k/test.jsonl", {"max_new_tokens": 4}),
        (HumanEval, "humaneval/HumanEval.jsonl.gz", CODE),
        (MBPP, "mbpp/mbpp.jsonl", CODE),
        (IFEval, "ifeval/input_data.jsonl", {"max_new_tokens": 4}),
    ):
        published: Benchmark = kind(kind.published, **settings)
        assert published.digest() == kind(str(folder / file), **settings).digest(), kind
        assert published.items()


def test_a_revision_of_a_benchmark_is_read_as_it_was(hub_cache: HubCache) -> None:
    split = {"test": slice(None)}
    old = hub_cache.add_rows("openai/gsm8k", GSM8K_ROWS[:1], subset="main", splits=split)
    hub_cache.add_rows("openai/gsm8k", GSM8K_ROWS, subset="main", splits=split)
    assert len(GSM8K("openai/gsm8k", 4).items()) == 4
    assert len(GSM8K("openai/gsm8k", 4, revision=old).items()) == 1


def test_a_benchmark_that_cannot_be_read_names_key_and_file(hub_cache: HubCache) -> None:
    suite = EvaluationSuite({"maths": GSM8K("openai/gsm8k", 4, revision="v9")})
    with pytest.raises(
        RequestError,
        match=r"evaluation\.benchmarks\.maths\.init_args\.path: openai/gsm8k is not a local file, "
        r"and the hub does not answer; its cache does not hold it at revision v9\. Name "
        r"grade_school_math/data/test\.jsonl of github\.com/openai/",
    ):
        suite.benchmarks["maths"].items()


def test_settings_of_the_hub_are_refused_for_a_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", GSM8K_ROWS)
    for setting in ("split", "revision"):
        with pytest.raises(RequestError, match=rf"{setting}: files have none, got 'x'"):
            GSM8K(str(path), 4, **{setting: "x"}).items()


def test_mt_bench_is_packaged_whole_with_its_licence() -> None:
    items = MTBench.for_grading(str(MTBench.published), "limited").items()
    assert len(items) == 80
    assert {item.row["category"] for item in items} >= {"writing", "math", "coding"}
    folder = Path(str(MTBench.published)).parent
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "lm-sys/FastChat" in (folder / "NOTICE").read_text()
    benchmark = MTBench(judge=None)  # type: ignore[arg-type]
    check_references(benchmark._questions, read_references(benchmark.references))
    assert len(read_judge_prompts(benchmark.judge_prompts)) == 4
