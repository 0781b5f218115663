"""Compare ``inspect`` on the real files with independent counts."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import CONFIGS, Lab

from sft_lab.paths import package_dir

pytestmark = pytest.mark.slow

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def data(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("gsm8k/train.jsonl.gz").parents[1]


@pytest.fixture(scope="module")
def inspected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lab = Lab(tmp_path_factory.mktemp("real"), package_dir() / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_LAB_DATA", str(data))
        config = CONFIGS / "real_files/everything.yaml"
        outcome = lab("inspect", f"--config={config}", "--json", "-n0")
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def instructions(rows: list[dict[str, str]]) -> Pairs:
    asked = ((r["instruction"] + ("\n\n" + r["input"] if r["input"].strip() else "")) for r in rows)
    pairs = zip(asked, (r["output"] for r in rows), strict=True)
    return [(prompt, answer) for prompt, answer in pairs if prompt.strip() and answer.strip()]


@pytest.fixture(scope="module")
def pairs(data: Path) -> dict[str, Pairs]:
    """Prompts and answers of all rows to be trained on, by source."""
    alpaca = json.loads((data / "code_alpaca/code_alpaca_2k.json").read_text(encoding="utf-8"))
    with gzip.open(data / "code_alpaca/new_codealpaca.json.gz", "rt", encoding="utf-8") as stream:
        codegen = json.load(stream)
    paths = lines(data / "gsm8k_rft/rft_phi35mini_681q.jsonl.gz")
    return {
        "math": [(r["question"], r["answer"]) for r in lines(data / "gsm8k/train.jsonl.gz")],
        "paths": [(r["query"], r["response"]) for r in paths if r["correct"] is True],
        "alpaca": instructions(alpaca),
        "codegen": instructions(codegen),
    }


def test_rows_and_tokens_equal_independent_counts(
    inspected: dict[str, Any], pairs: dict[str, Pairs]
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_dir() / "world/base/tokenizer.json"))

    def lengths(texts: list[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    for source, rows in pairs.items():
        answers = sum(lengths([f"{answer}<|end|>" for _, answer in rows]))
        whole = sum(lengths([f"<|user|>{p}<|end|><|assistant|>{a}<|end|>" for p, a in rows]))
        counted = inspected["stages"]["all"]["mixture"][source]
        assert counted == {
            "asked": 1,
            "rows": len(rows),
            "samples": len(rows),
            "tokens": whole,
            "target_tokens": answers,
        }, source


def test_every_row_of_every_file_is_accounted_for(inspected: dict[str, Any]) -> None:
    rows = {"math": 7473, "paths": 2802, "alpaca": 2017, "codegen": 4535, "general": 991}
    for source, total in rows.items():
        report = inspected["sources"][source]
        assert report["rows"] == total
        kept = inspected["stages"]["all"]["mixture"][source]["rows"]
        assert kept + sum(report["dropped"].values()) == total


def test_packed_sequences_are_97_percent_full(inspected: dict[str, Any]) -> None:
    stage = inspected["stages"]["all"]
    tokens = sum(part["tokens"] for part in stage["mixture"].values())
    assert stage["fill"] == pytest.approx(tokens / (2048 * stage["sequences"]))
    assert stage["fill"] >= 0.97


def test_patterns_remove_code_and_maths_from_chats(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_DATA", str(data))
    lab = Lab(tmp_path, package_dir() / "world")
    configs = [CONFIGS / "real_files/everything.yaml", CONFIGS / "paper/without_code_and_math.yaml"]
    without = (
        f"--data.stages.all.mixture.{name}=0" for name in ("math", "paths", "alpaca", "codegen")
    )
    arguments = (*(f"--config={path}" for path in configs), *without, "--json", "-n1000")
    outcome = lab("inspect", *arguments)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    left = found["stages"]["all"]["mixture"]["general"]["samples"]
    assert 300 < left < 600  # of 864; the paper keeps 63 of 86 thousand
    chats = [
        "".join(part["text"] for part in sample["pieces"])
        for sample in found["samples"]
        if sample["source"] == "general"
    ]
    assert len(chats) == left
    assert not any("```" in chat or "def " in chat.split("\n") for chat in chats)
