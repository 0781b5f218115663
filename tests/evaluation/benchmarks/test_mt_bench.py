import gzip
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_jsonl

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Verdict
from sft_lab.evaluation.benchmarks.mt_bench.benchmark import MTBench
from sft_lab.evaluation.benchmarks.mt_bench.files import (
    JudgedTurn,
    JudgePrompt,
    Question,
    read_judge_prompts,
    read_judgements,
    read_questions,
    read_references,
)
from sft_lab.evaluation.benchmarks.mt_bench.ratings import (
    check_references,
    judge_prompt,
    rating,
)
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import GREEDY, Decoding
from sft_lab.evaluation.reasoning import Completion
from sft_lab.evaluation.scoring import grade_file
from sft_lab.metrics.intervals import bootstrap
from sft_lab.metrics.score import Score

QUESTION = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}
REFERENCE = {
    "question_id": 111,
    "model_id": "gpt-4",
    "choices": [{"index": 0, "turns": ["7", "8"]}],
}
SINGLE = {
    "name": "single-v1",
    "type": "single",
    "system_prompt": "Be fair.",
    "prompt_template": "Q {question} A {answer}",
    "output_format": "[[rating]]",
}
PROMPTS = [
    SINGLE,
    SINGLE
    | {
        "name": "single-math-v1",
        "prompt_template": "Q {question} R {ref_answer_1} A {answer}",
    },
    SINGLE
    | {
        "name": "single-v1-multi-turn",
        "prompt_template": "{question_1} {answer_1} {question_2} {answer_2}",
    },
    SINGLE
    | {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "",
        "prompt_template": "{ref_answer_1} {ref_answer_2} | {question_1} {answer_1} {question_2} "
        "{answer_2} {{}}",
    },
]
JUDGEMENT = {
    "question_id": 81,
    "model": "vicuna",
    "judge": ["gpt-4", "single-v1"],
    "user_prompt": "...",
    "judgment": "Good. Rating: [[9]]",
    "score": 3,
    "turn": 1,
    "tstamp": 1687222222.5,
}
WRITING = Question(81, "writing", ("Write.", "Rewrite."))
MATH = Question(111, "math", ("3+4?", "And 1?"))


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, JudgePrompt]:
    return read_judge_prompts(write_jsonl(tmp_path / "prompts.jsonl", PROMPTS))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_plain_and_compressed_files_are_read(tmp_path: Path) -> None:
    assert read_questions(write_jsonl(tmp_path / "q.jsonl", [QUESTION])) == [WRITING]
    packed = tmp_path / "q.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "q.jsonl").read_bytes()))
    assert read_questions(packed) == [WRITING]
    assert read_references(write_jsonl(tmp_path / "r.jsonl", [REFERENCE])) == {111: ("7", "8")}


def test_prompts_for_pairs_are_ignored(tmp_path: Path) -> None:
    pair = SINGLE | {"name": "pair-v2", "prompt_template": "{answer_a}", "output_format": "[[A]]"}
    found = read_judge_prompts(write_jsonl(tmp_path / "p.jsonl", [pair, *PROMPTS]))
    assert list(found) == [row["name"] for row in PROMPTS]
    assert found["single-v1"] == JudgePrompt("single-v1", "Be fair.", "Q {question} A {answer}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(QUESTION, "turns"), "key 'turns' is missing"),
        (QUESTION | {"turns": ["one"]}, r"key 'turns' must be two texts.* got \['one'\]"),
        (QUESTION | {"turns": ["one", " "]}, "key 'turns' must be two texts"),
        (QUESTION | {"question_id": "81"}, "key 'question_id' must be a whole number, got '81'"),
        (QUESTION | {"question_id": True}, "key 'question_id' must be a whole number, got True"),
        (QUESTION | {"category": "mean"}, "key 'category' .* got 'mean'"),
        (QUESTION | {"category": "a/b"}, "key 'category' .* got 'a/b'"),
        (QUESTION | {"category": None}, "key 'category' must be a string, got None"),
        ([1], r"holds '\[1\]', expected an object"),
        (QUESTION, "question_id 81 is also on line 1"),
    ],
)
def test_a_malformed_question_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [QUESTION, row])
    with pytest.raises(RequestError, match=rf"q\.jsonl, line 2:? {message}"):
        read_questions(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": []}, r"key 'choices' must be a list of objects, got \[\]"),
        ({"choices": [{}]}, "key 'turns' is missing"),
        ({"choices": [{"turns": ["7"]}]}, r"key 'turns' must be two texts.* got \['7'\]"),
    ],
)
def test_a_malformed_reference_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=rf"r\.jsonl, line 1: {message}"):
        read_references(write_jsonl(tmp_path / "r.jsonl", [REFERENCE | change]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "{question}"}, r"must have the field \{answer\}"),
        ({"prompt_template": "{answer} {answr}"}, r"has the field \{answr\}; there are answer, "),
        ({"prompt_template": "{answer} {}"}, r"has the field \{\}"),
        ({"prompt_template": "{answer} {answer.format}"}, r"has the field \{answer\.format\}"),
        ({"prompt_template": "{answer:{width}}"}, r"has the field \{answer:\{width\}\}"),
        ({"prompt_template": "{answer"}, "key 'prompt_template' of single-v1: .* write a brace"),
        ({"output_format": "[[A]]"}, r"key 'output_format' of single-v1 .* got '\[\[A\]\]'"),
        ({"system_prompt": 3}, "key 'system_prompt' must be a string, got 3"),
    ],
)
def test_a_malformed_prompt_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [*PROMPTS[1:], SINGLE | change])
    with pytest.raises(RequestError, match=rf"p\.jsonl, line 4: .*{message}"):
        read_judge_prompts(path)


def test_a_missing_prompt_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", PROMPTS[:3])
    with pytest.raises(RequestError, match="no judge prompt is named 'single-math-v1-multi-turn'"):
        read_judge_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "cannot be read.*No such file"),
        ("q.jsonl", b"", "has no rows"),
        ("q.jsonl", b"{", "line 1 is not JSON: .*character 2"),
        ("q.jsonl", b"\xff", "is not UTF-8"),
        ("q.jsonl.gz", b"plain", "Not a gzipped file"),
        ("q.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot be read: Compressed"),
    ],
)
def test_an_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=f"{name}.*{message}"):
        read_questions(tmp_path / name)


def test_the_first_turn_is_judged_alone(prompts: dict[str, JudgePrompt]) -> None:
    system = {"role": "system", "content": "Be fair."}
    asked = judge_prompt(WRITING, ["Ode"], 1, prompts, {})
    assert asked == [system, user("Q Write. A Ode")]
    asked = judge_prompt(MATH, ["6", "9"], 1, prompts, {111: ("7", "8")})
    assert asked == [system, user("Q 3+4? R 7 A 6")]


def test_the_second_turn_includes_the_first(prompts: dict[str, JudgePrompt]) -> None:
    asked = judge_prompt(WRITING, ["Ode {x}", "Odd"], 2, prompts, {})
    assert asked[1:] == [user("Write. Ode {x} Rewrite. Odd")]
    asked = judge_prompt(MATH, ["6", "9"], 2, prompts, {111: ("7", "8")})
    assert asked == [user("7 8 | 3+4? 6 And 1? 9 {}")]  # its system prompt is empty


@pytest.mark.parametrize("category", ["math", "reasoning", "coding", "arena-hard-200"])
def test_a_missing_reference_is_named(prompts: dict[str, JudgePrompt], category: str) -> None:
    question = Question(7, category, ("a", "b"))
    for attempt in (
        lambda: check_references([WRITING, question], {8: ("x", "y")}),
        lambda: judge_prompt(question, ["c"], 1, prompts, {}),
    ):
        with pytest.raises(RequestError, match=f"Question 7 of category '{category}' has no ref"):
            attempt()
    check_references([WRITING, question], {7: ("x", "y")})


def test_a_turn_without_an_answer_is_refused(prompts: dict[str, JudgePrompt]) -> None:
    with pytest.raises(ValueError, match="got 2 of 1"):
        judge_prompt(WRITING, ["Ode"], 2, prompts, {})
    with pytest.raises(ValueError, match="got 0 of 1"):
        judge_prompt(WRITING, ["Ode"], 0, prompts, {})


@pytest.mark.parametrize(
    ("judgement", "expected"),
    [
        ("Rating: [[5]]", 5.0),
        ("[[7.5]]", 7.5),
        ("[[5.]]", 5.0),
        ("[[08]]", 8.0),
        ("[[3]] and then [[9]]", 3.0),
        ("see [1] and [2]. Rating: [[9]]", 9.0),  # double brackets first, wherever they are
        ("see [1] and [2]. Rating: 9", 1.0),  # else the first in single ones, right or wrong
        ("Rating: [6]", 6.0),
        ("Rating: [[rating]] [4]", 4.0),
        ("[[1]], [[10]]", 1.0),
        ("[[10]]", 10.0),
        ("[[ 8 ]]", None),
        ("[[8/10]]", None),
        ("[[-5]]", None),
        ("[[.5]]", None),
        ("[[8,5]]", None),
        ("[[\u0665]]", None),  # an Arabic 5
        ("Rating: 8", None),
        ("$ERROR$", None),
        ("", None),
        ("[[0]]", None),  # off the scale; later numbers are not considered
        ("[[0.9]] or [[7]]", None),
        ("[[10.5]]", None),
        ("[85]", None),
        ("[[" + "9" * 400 + "]]", None),
        ("<think>Perhaps [[3]].</think>\nRating: [[9]]", 9.0),
        ("<think>Perhaps [[3]].", None),
        ("[[" + "1" * 100_000, None),  # 12 s for 16,000, where time grew with the square
        ("[" * 100_000, None),
    ],
)
def test_rating(judgement: str, expected: float | None) -> None:
    assert rating(judgement) == expected


def test_judgements_are_read_in_order_and_rated_by_their_text(tmp_path: Path) -> None:
    second = JUDGEMENT | {"turn": 2, "judge": ["gpt-4", "single-v1-multi-turn"], "judgment": "?"}
    path = write_jsonl(tmp_path / "gpt-4_single.jsonl", [second, JUDGEMENT])
    found = read_judgements(path)
    assert found == [
        JudgedTurn(81, 2, "vicuna", "?"),
        JudgedTurn(81, 1, "vicuna", "Good. Rating: [[9]]"),
    ]
    assert [rating(judgement.text) for judgement in found] == [None, 9.0]  # score says 3


def test_one_of_several_models_has_to_be_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "j.jsonl", [JUDGEMENT, JUDGEMENT | {"model": "alpaca"}])
    with pytest.raises(RequestError, match=r"j\.jsonl judges several models: vicuna, alpaca"):
        read_judgements(path)
    with pytest.raises(RequestError, match="has no model 'llama'; it judges vicuna, alpaca"):
        read_judgements(path, "llama")
    assert [judgement.model for judgement in read_judgements(path, "alpaca")] == ["alpaca"]


def test_judges_are_not_mixed(tmp_path: Path) -> None:
    other = JUDGEMENT | {"turn": 2, "judge": ["gpt-3.5-turbo", "single-v1-multi-turn"]}
    path = write_jsonl(tmp_path / "j.jsonl", [JUDGEMENT, other])
    with pytest.raises(RequestError, match=r"several judges: gpt-4, gpt-3\.5-turbo"):
        read_judgements(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turn": 3}, "key 'turn' must be 1 or 2, got 3"),
        ({"judgment": None}, "key 'judgment' must be a string, got None"),
        ({"model": 1}, "key 'model' must be a string, got 1"),
    ],
)
def test_a_malformed_judgement_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_jsonl(tmp_path / "j.jsonl", [JUDGEMENT | change])
    with pytest.raises(RequestError, match=rf"j\.jsonl, line 1: {message}"):
        read_judgements(path)


def test_the_published_files_give_160_prompts(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("mt_bench/question.jsonl").parent
    questions = read_questions(folder / "question.jsonl")
    references = read_references(folder / "reference_answer/gpt-4.jsonl")
    prompts = read_judge_prompts(folder / "judge_prompts.jsonl")
    check_references(questions, references)
    rows = [json.loads(line) for line in (folder / "question.jsonl").open(encoding="utf-8")]
    assert len(rows) == len(questions) == 80
    for row, question in zip(rows, questions, strict=True):
        for turn in (1, 2):
            system, asked = judge_prompt(
                question, ["ANSWER 1", "ANSWER 2"], turn, prompts, references
            )
            text = asked["content"]
            referenced = row["category"] in ("math", "reasoning", "coding")
            assert ("[The Start of Reference" in text or "<|The Start of Ref" in text) == referenced
            assert all(reference in text for reference in references.get(question.id, ())[:turn])
            assert all(said in text for said in row["turns"][:turn])
            assert ("ANSWER 2" in text) == (turn == 2)
            assert "on a scale of 1 to 10" in (text, system["content"])[turn - 1]


def test_scores_by_hand(tmp_path: Path) -> None:
    questions = [QUESTION, QUESTION | {"question_id": 82}]
    questions += [{"question_id": 111, "category": "math", "turns": ["3+4?", "And 1?"]}]
    path = write_jsonl(tmp_path / "question.jsonl", questions)
    given = [(81, 1, "[[8]]"), (81, 2, "[[6]]"), (82, 1, "[[10]]"), (82, 2, "?"), (111, 1, "[[2]]")]
    rows = [
        JUDGEMENT | {"question_id": question, "turn": turn, "judgment": text, "judge": None}
        for question, turn, text in given
    ]
    for order in (rows, rows[::-1]):
        judged = write_jsonl(tmp_path / "j.jsonl", order)
        graded = grade_file("mt_bench", str(path), str(judged))
        assert {name: (score.value, score.n) for name, score in graded.scores.items()} == {
            "mean": (6.5, 4),  # (8 + 6 + 10 + 2) / 4: the mean over ratings, not over questions
            "turn_1": (pytest.approx(20 / 3), 3),
            "turn_2": (6.0, 1),
            "writing": (8.0, 3),
            "math": (2.0, 1),
        }
        # writing: 81 twice 7, both 24 / 3 = 8, 82 twice 10; math has one question
        assert (graded.scores["writing"].low, graded.scores["writing"].high) == (7.0, 10.0)
        assert graded.scores["math"] == Score(2.0, 2.0, 2.0, 1)
        mean = graded.scores["mean"]
        assert (mean.low, mean.high) == bootstrap([8, 6, 10, 2], groups=[81, 81, 82, 111])
        assert graded.details["unparsable"] == 1


def test_without_a_rating_there_is_no_score(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "question.jsonl", [QUESTION])
    judged = write_jsonl(tmp_path / "j.jsonl", [JUDGEMENT | {"judgment": "?"}])
    assert grade_file("mt_bench", str(path), str(judged)).scores == {}


@pytest.mark.parametrize("text", ["[[" + "1" * 100_000, "[[1." + "1" * 100_000, "[" * 100_000])
def test_the_time_to_read_a_rating_is_bounded(text: str) -> None:
    start = time.process_time()
    assert rating(text) is None
    assert time.process_time() - start < 0.5  # in quadratic time, half a minute


class Asked(EvaluatedModel):
    """Answers every prompt with its temperature."""

    def __init__(self, decoding: Decoding = GREEDY) -> None:
        self.decoding = decoding
        self.renderer: Any = SimpleNamespace(prompt_ids=lambda messages: [len(messages)])

    def at_temperature(self, temperature: float) -> EvaluatedModel:
        return Asked(Decoding(temperature=temperature))

    def complete(self, prompts: Sequence[Sequence[int]], *_: Any, **__: Any) -> list[Completion]:
        return [Completion(f"at {self.decoding.temperature}") for _ in prompts]


class Judged:
    """Rates with the given judgements, one after the other."""

    model = "judge"

    def __init__(self, *judgements: str) -> None:
        self.judgements = judgements

    def ask_several(self, asked: Sequence[Any], num_answers: int) -> list[list[str]]:
        assert num_answers == len(self.judgements)
        return [list(self.judgements) for _ in asked]


@pytest.fixture
def make_benchmark(tmp_path: Path) -> Callable[..., MTBench]:
    rows = [
        QUESTION | {"question_id": n, "category": category}
        for n, category in enumerate(("poetry", "writing", "extraction", "stem", "roleplay"))
    ]
    paths = [
        str(write_jsonl(tmp_path / f"{name}.jsonl", content))
        for name, content in (("q", rows), ("r", [REFERENCE]), ("p", PROMPTS))
    ]

    def make(*judgements: str, **given: Any) -> MTBench:
        judge: Any = Judged(*judgements)
        return MTBench(judge, *paths, num_judgements=len(judgements), **given)

    return make


def test_answers_are_sampled_at_fastchat_s_temperatures(
    make_benchmark: Callable[..., MTBench],
) -> None:
    benchmark = make_benchmark("[[7]]", temperatures={"roleplay": 0.2})
    measured = benchmark.measure(benchmark.items(), [[1]] * 5, Asked())
    assert [[answer.completion for answer in turns] for turns in measured] == [
        ["at 0.7"] * 2,  # of no category of FastChat's
        ["at 0.7"] * 2,
        ["at 0.0"] * 2,
        ["at 0.1"] * 2,
        ["at 0.2"] * 2,
    ]
    assert [turns[1].item.id for turns in measured] == [f"MT-Bench/{n}/2" for n in range(5)]
    with pytest.raises(RequestError, match=r"temperatures: .* has no category 'maths'"):
        make_benchmark("", temperatures={"maths": 0.2}).check()


def test_judgements_of_an_answer_are_averaged(make_benchmark: Callable[..., MTBench]) -> None:
    def grade(*judgements: str) -> Verdict:
        benchmark = make_benchmark(*judgements)
        return benchmark.grade(benchmark.items()[:1], ["A poem."])[0]

    found = grade("[[4]]", "[[9]]", "none")
    assert found.marks == {"rating": 6.5}
    assert "Judgement 2 of 3: [[9]]" in found.reason
    assert grade("[[4]]") == Verdict({"rating": 4.0}, "[[4]]")
    assert grade("none", "none").marks is None
    assert make_benchmark("", "").digest() != make_benchmark("").digest()
