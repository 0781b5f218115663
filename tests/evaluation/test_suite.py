import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.suite import EvaluationSuite


class Graded(Benchmark):
    """Has two scores, of which nothing is ever graded here."""

    score_names = ("strict", "flexible")

    def grade(self, items: list[Item], completions: list[str]) -> list[Verdict]:  # type: ignore[override]
        raise NotImplementedError


class Rated(Graded):
    score_names = ("mean",)
    scale = (1.0, 10.0)


def graded(source: str | None) -> Graded:
    return Graded("rows.jsonl", max_new_tokens=1, source=source)


def suite(**settings: dict[str, str]) -> EvaluationSuite:
    benchmarks: dict[str, Benchmark] = {
        "mt_bench": Rated("rows.jsonl", max_new_tokens=1, source="chat"),
        "gsm8k": graded("math"),
        "svamp": graded("math"),
        "ifeval": graded("chat"),
        "mmlu": graded(None),
    }
    return EvaluationSuite(benchmarks, **settings)  # type: ignore[arg-type]


def test_an_ability_goes_by_its_source_and_the_first_score_of_its_first_benchmark() -> None:
    assert suite().primary == {
        "math": "gsm8k/strict",
        "chat": "ifeval/strict",  # a rating is not an ability
        "mmlu": "mmlu/strict",  # no source teaches it
    }


def test_the_primary_score_of_a_source_can_be_chosen() -> None:
    chosen = suite(primary={"math": "svamp/flexible"})
    assert chosen.primary["math"] == "svamp/flexible"
    # What a study reports of a benchmark is the score that was chosen.
    assert chosen.score_keys == {
        "mt_bench": "mt_bench/mean",
        "gsm8k": "gsm8k/strict",
        "svamp": "svamp/flexible",
        "ifeval": "ifeval/strict",
        "mmlu": "mmlu/strict",
    }


@pytest.mark.parametrize(
    ("source", "key"),
    [("math", "ifeval/strict"), ("chat", "mt_bench/mean"), ("code", "gsm8k/strict")],
)
def test_a_primary_score_of_another_source_or_a_rating_is_refused(source: str, key: str) -> None:
    with pytest.raises(RequestError, match=f"evaluation.primary.{source}: {key} is not a score"):
        suite(primary={source: key})
