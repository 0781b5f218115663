"""Tasks of lm-evaluation-harness, over a task folder of our own and the tiny random base."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_jsonl
from tiny_lab import CONFIGS, EVALUATED_STEPS, Lab

from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmarks.harness.requests import HarnessModel, decoding_of
from sft_lab.evaluation.benchmarks.harness.task import HarnessTask
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import GREEDY, Decoding, NativeEngine

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="no lm-evaluation-harness; pip install 'sft_lab[harness]'"
)

DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
"""
CHOICES = """
task: sums
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 3.5}
"""
ANSWERS = """
task: answered_sums
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]}
  - {name: as_is, filter: [{function: take_first}]}
metadata: {version: 1.0}
"""
TEXTS = """
task: texts
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 2.0}
"""
MIXED_YAML = """
task: mixed
class: !function mixed.Mixed
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}, cache_dir: {folder}/cache}}
"""
MIXED = '''
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask


class Mixed(ConfigurableTask):
    """Generates an answer and compares another with it, as SQuAD 2.0 does."""

    VERSION = 1

    def __init__(self, config=None):
        config = {k: v for k, v in config.items() if k != "class"}
        common = {"test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "5"}
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        super().__init__(config={**config, **common, "metric_list": [metric]})

    def construct_requests(self, doc, ctx, **kwargs):
        kwargs = {k: v for k, v in kwargs.items() if k in ("metadata", "doc_id")}
        settings = {"until": ["!"], "max_gen_toks": 2}
        return [
            Instance("generate_until", doc, (ctx, settings), 0, **kwargs),
            Instance("loglikelihood", doc, (ctx, " 5"), 1, **kwargs),
        ]

    def process_results(self, doc, results):
        text, (value, _) = results
        return {"both": isinstance(text, str) and value < 0}

    def aggregation(self):
        return {"both": mean}

    def higher_is_better(self):
        return {"both": True}
'''
GROUP = "group: all_sums\ntask: [sums, answered_sums]\n"
QUESTIONS = [
    {"question": f"{n} + {n} =", "choices": ["5", str(2 * n), "minus one"], "gold": 1}
    for n in range(1, 7)
]
CONFIG = """
evaluation:
  benchmarks:
    sums:
      class_path: sft_lab.evaluation.benchmarks.harness.task.HarnessTask
      init_args: {task: sums, metrics: [acc_norm, acc], include_path: tasks, source: math}
    answered_sums:
      class_path: sft_lab.evaluation.benchmarks.harness.task.HarnessTask
      init_args:
        task: answered_sums
        metrics: ["exact_match,first"]
        include_path: tasks
        num_examples: 3
        chat: true
    texts:
      class_path: sft_lab.evaluation.benchmarks.harness.task.HarnessTask
      init_args: {task: texts, metrics: [byte_perplexity], include_path: tasks, scale: [1, 1e9]}
"""


def write_tasks(folder: Path) -> Path:
    tasks = folder / "tasks"
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    tasks.mkdir()
    for name, task in {"sums": CHOICES, "answers": ANSWERS, "texts": TEXTS}.items():
        (tasks / f"{name}.yaml").write_text(DATA.format(folder=folder) + task)
    (tasks / "group.yaml").write_text(GROUP)
    return tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("harness")))


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture
def make_model(base: Any, chat_tokenizer: Any) -> Callable[..., HarnessModel]:
    renderer = Renderer(chat_tokenizer, None)

    def make(batch_size: int = 4, batch_tokens: int | None = None, **settings: Any) -> HarnessModel:
        engine = NativeEngine(batch_size, batch_tokens)
        return HarnessModel(EvaluatedModel(base, engine, renderer, GREEDY), **settings)

    return make


def log_likelihood(base: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One text alone, by the model's own forward."""
    with torch.no_grad():
        logits = base(torch.tensor([context + continuation])).logits[0]
    logprobs = logits[len(context) - 1 : -1].log_softmax(-1)
    targets = torch.tensor(continuation)
    value = logprobs.gather(-1, targets[:, None]).sum().item()
    return value, bool((logprobs.argmax(-1) == targets).all())


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("limits", [{}, {"batch_tokens": 12}, {"batch_size": 1}])
def test_likelihoods_are_those_of_each_text_alone(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any, limits: dict[str, int]
) -> None:
    # The space at the border goes to the continuation.
    requests = [("2 + 2 =", " 4"), ("Say: ", "a long answer"), ("", "alone"), ("x", "y")]
    borders = [("2 + 2 =", " 4"), ("Say:", " a long answer"), ("<end>", "alone"), ("x", "y")]
    found = make_model(**limits).loglikelihood(requests)
    for (value, greedy), (context, continuation) in zip(found, borders, strict=True):
        expected, all_greedy = log_likelihood(
            base, ids(chat_tokenizer, context), ids(chat_tokenizer, continuation)
        )
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == all_greedy


def test_the_models_own_answer_is_greedy(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any
) -> None:
    answers = {
        letter: chat_tokenizer.decode(
            base.generate(
                torch.tensor([ids(chat_tokenizer, letter)]), max_new_tokens=1, do_sample=False
            )[0, -1:]
        )
        for letter in "abcdef"
    }
    readable = [pair for pair in answers.items() if pair[1].isascii() and pair[1].isalnum()]
    assert readable
    assert all(greedy for _, greedy in make_model().loglikelihood(readable))
    others = [(context, "!" + answer) for context, answer in readable]
    assert not any(greedy for _, greedy in make_model().loglikelihood(others))


def test_what_is_too_long_is_cut_on_the_left(
    make_model: Callable[..., HarnessModel],
    base: Any,
    chat_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base.config, "max_position_embeddings", 5)
    [(value, _)] = make_model().loglikelihood([("a much longer text", "abc")])
    expected, _ = log_likelihood(base, ids(chat_tokenizer, "ext"), ids(chat_tokenizer, "abc"))
    assert value == pytest.approx(expected, abs=1e-4)


@needs_harness
def test_a_long_text_is_scored_in_windows(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any
) -> None:
    text = ids(chat_tokenizer, "twenty tokens, or so")
    assert len(text) == 20
    model = make_model()
    model.max_length = 8
    windows = [
        ([chat_tokenizer.eos_token_id], text[:8]),
        (text[7:8], text[8:16]),
        (text[11:16], text[16:]),  # the last one sees as much as fits
    ]
    expected = sum(log_likelihood(base, *window)[0] for window in windows)
    [value] = model.loglikelihood_rolling([("twenty tokens, or so",)])
    assert value == pytest.approx(expected, abs=1e-4)


def test_answers_are_those_of_generate_and_end_before_a_stop_string(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any
) -> None:
    context = torch.tensor([ids(chat_tokenizer, "2 + 2 =")])
    tokens = base.generate(context, max_new_tokens=6, do_sample=False)[0, context.shape[1] :]
    text = chat_tokenizer.decode(tokens, skip_special_tokens=True)
    stop = text[2]
    for decoding, expected in (
        (GREEDY, text),
        (Decoding(stop_strings=(stop,)), text.split(stop)[0]),
    ):
        [[found]] = make_model().complete(["2 + 2 ="], 6, decoding)
        assert found.answer == expected


def test_a_chat_is_asked_by_the_runs_template(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    [(value, _)] = make_model(chat=True).loglikelihood([(json.dumps(messages), " 4")])
    context = ids(chat_tokenizer, "<user>Hi<end><assistant>It is")
    expected, _ = log_likelihood(base, context, ids(chat_tokenizer, " 4"))
    assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (Decoding(), 9)),
        (
            {"until": ["\n", ""], "do_sample": False, "top_k": 1},
            (Decoding(stop_strings=("\n",)), 9),
        ),
        ({"do_sample": True, "top_p": 0.9, "max_gen_toks": 4}, (Decoding(1.0, 0.9, 3), 4)),
        ({"temperature": 0.0, "max_new_tokens": 5}, (Decoding(), 5)),
    ],
)
def test_a_task_says_how_answers_are_made(
    settings: dict[str, Any], expected: tuple[Decoding, int]
) -> None:
    assert decoding_of(settings, repeats=3, default=9) == expected


def test_a_way_of_decoding_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="num_beams"):
        decoding_of({"num_beams": 4}, repeats=1, default=9)


@needs_harness
def test_choices_are_graded_by_their_likelihoods(
    make_model: Callable[..., HarnessModel], base: Any, chat_tokenizer: Any, tasks: str
) -> None:
    benchmark = HarnessTask("sums", ["acc", "acc_norm"], include_path=tasks)
    items = benchmark.items()
    measured = benchmark.ask(items, make_model())
    acc = acc_norm = 0
    for question, [answer] in zip(QUESTIONS, measured, strict=True):
        said, verdict = answer.completion, answer.verdict
        context = ids(chat_tokenizer, question["question"])
        values = [
            log_likelihood(base, context, ids(chat_tokenizer, f" {choice}"))[0]
            for choice in question["choices"]
        ]
        norms = [v / len(choice) for v, choice in zip(values, question["choices"], strict=True)]
        marks = {
            "acc": values.index(max(values)) == 1,
            "acc_norm": norms.index(max(norms)) == 1,
        }
        assert verdict.marks == marks
        assert [float(line.split()[0]) for line in said.split("\n")] == pytest.approx(
            values, abs=1e-3
        )
        acc += marks["acc"]
        acc_norm += marks["acc_norm"]
    scores = benchmark.scores(items, [answer.verdict for [answer] in measured])
    assert (scores["acc"].value, scores["acc_norm"].value) == (acc / 6, acc_norm / 6)
    assert scores["acc"].n == 6


@needs_harness
def test_answers_are_graded_after_each_filter(tasks: str) -> None:
    metrics = ["exact_match,first", "exact_match,as_is"]
    benchmark = HarnessTask("answered_sums", metrics, include_path=tasks, num_examples=3)
    assert benchmark.score_names == ("exact_match_first", "exact_match_as_is")
    items = benchmark.items()
    # Questions 0, 2 and 4 of six.
    assert [item.text for item in items] == ["1 + 1 =", "3 + 3 =", "5 + 5 ="]
    verdicts = benchmark.grade(items, ["it is 2", "6", "eleven"])
    assert [verdict.marks for verdict in verdicts] == [
        {"exact_match_first": 1, "exact_match_as_is": 0},
        {"exact_match_first": 1, "exact_match_as_is": 1},
        {"exact_match_first": 0, "exact_match_as_is": 0},
    ]
    scores = benchmark.scores(items, verdicts)
    # Wilson's interval of 2 out of 3.
    assert scores["exact_match_first"].low == pytest.approx(0.2077, abs=1e-4)
    # The same items may be asked again, and fewer of them.
    [again] = benchmark.grade(items[2:], ["10"])
    assert again.marks == {"exact_match_first": 1, "exact_match_as_is": 1}


@needs_harness
def test_reasoning_is_cut_before_the_filters_of_a_task(
    make_model: Callable[..., HarnessModel], tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = HarnessTask("answered_sums", ["exact_match,first"], include_path=tasks)
    items = benchmark.items()[:1]
    model = make_model()
    model.model.cut_reasoning = True
    text = "<think>5?\n</think>It is 2.\nNext: 7"  # the task stops at a line's end
    monkeypatch.setattr(model.model.engine, "complete", lambda *_, **__: [text])
    [[answer]] = benchmark.ask(items, model)
    assert (answer.completion, answer.reasoning) == ("It is 2.", "<think>5?\n</think>")
    assert answer.verdict.marks == {"exact_match_first": 1}


@needs_harness
def test_a_task_that_generates_and_compares_takes_its_settings_from_its_requests(
    make_model: Callable[..., HarnessModel], tmp_path: Path
) -> None:
    tasks = write_tasks(tmp_path)
    (tasks / "mixed.py").write_text(MIXED)
    (tasks / "mixed.yaml").write_text(MIXED_YAML.format(folder=tmp_path))
    benchmark = HarnessTask("mixed", ["both"], include_path=str(tasks))
    items = benchmark.items()
    assert (benchmark.decoding.stop_strings, benchmark.protocol()["max_new_tokens"]) == (("!",), 2)
    [[answer], *_] = benchmark.ask(items, make_model())
    generated, compared = answer.completion.rsplit("\n", 1)
    assert (len(generated), compared.split()[1]) == (2, "5")
    assert answer.verdict.marks == {"both": True}
    [score] = benchmark.scores(items, [answer.verdict for _ in items]).values()
    assert (score.value, score.n) == (1.0, 6)


@needs_harness
def test_a_perplexity_is_of_all_texts_together_and_no_ability(
    make_model: Callable[..., HarnessModel], tasks: str
) -> None:
    benchmark = HarnessTask("texts", ["byte_perplexity"], include_path=tasks, scale=(1, 1e6))
    items = benchmark.items()
    model = make_model()
    verdicts = [answer.verdict for [answer] in benchmark.ask(items, model)]
    texts = [question["question"] for question in QUESTIONS]
    values = model.loglikelihood_rolling([(text,) for text in texts])
    score = benchmark.scores(items, verdicts)["byte_perplexity"]
    assert score.value == pytest.approx(math.exp(-sum(values) / len("".join(texts))))
    assert score.low < score.value < score.high
    assert not benchmark.is_ability("byte_perplexity")
    with pytest.raises(RequestError, match="set scale"):
        HarnessTask("texts", ["byte_perplexity"], include_path=tasks).scores(items, verdicts)


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_the_harnesss_own_model_gives_the_same(
    make_model: Callable[..., HarnessModel],
    base: Any,
    chat_tokenizer: Any,
    tasks: str,
    chat: bool,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    named = {"sums": "acc_norm", "answered_sums": "exact_match,first", "texts": "byte_perplexity"}
    theirs = simple_evaluate(
        model=HFLM(pretrained=base, tokenizer=chat_tokenizer, batch_size=2),
        tasks=list(named),
        num_fewshot=2,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,
    )
    for task, metric in named.items():
        benchmark = HarnessTask(
            task, [metric], num_fewshot=2, include_path=tasks, scale=(0, 1e6), chat=chat
        )
        items = benchmark.items()
        measured = benchmark.ask(items, make_model(chat=chat))
        [score] = benchmark.scores(items, [answer.verdict for [answer] in measured]).values()
        key = metric if "," in metric else f"{metric},none"
        assert score.value == pytest.approx(theirs["results"][task][key], rel=1e-4)
        samples = [s for s in theirs["samples"][task] if s["filter"] in ("none", "first")]
        for [answer], sample in zip(measured, samples, strict=True):
            said = answer.completion
            responses = [response[0] for response in sample["resps"]]
            if task == "answered_sums":
                assert [said] == responses
            else:
                values = [r[0] if isinstance(r, tuple) else r for r in responses]
                found = [float(line.split()[0]) for line in said.split("\n")]
                assert found == pytest.approx(values, abs=1e-3)


@needs_harness
def test_the_same_examples_stand_before_a_question_every_time(tasks: str) -> None:
    made = [
        HarnessTask("sums", ["acc"], num_fewshot=2, include_path=tasks, chat=chat).items()
        for chat in (False, False, True)
    ]
    assert made[0] == made[1]
    assert all(item.text is not None and item.text.count("+") == 3 for item in made[0])
    roles = [message["role"] for message in made[2][0].messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


@needs_harness
def test_a_benchmark_is_known_by_its_tasks_version_and_questions(tasks: str) -> None:
    benchmark = HarnessTask("sums", ["acc"], include_path=tasks)
    assert benchmark.protocol()["version"] == 3.5
    assert benchmark.texts(benchmark.items()[0]) == ["1 + 1 ="]
    other = HarnessTask("sums", ["acc"], include_path=tasks, num_fewshot=1)
    assert benchmark.digest() != other.digest()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_lab.evaluation.benchmarks.harness.find.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'sft_lab\[harness\]'"):
        HarnessTask("sums", ["acc"]).check()


@needs_harness
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["accuracy"]}, r"no 'accuracy'; it has acc, acc_norm"),
        ({"task": "all_sums"}, "is a group of tasks"),
        ({"num_examples": 7}, "num_examples is 7, but sums has 6 rows"),
        ({"include_path": "nowhere"}, "include_path must be a folder"),
    ],
)
def test_a_wrong_argument_is_named(tasks: str, settings: dict[str, Any], message: str) -> None:
    arguments = {"task": "sums", "metrics": ["acc"], "include_path": tasks, **settings}
    with pytest.raises(RequestError, match=message):
        HarnessTask(**arguments).check()


def test_the_shipped_config_names_a_task(lab: Lab) -> None:
    """Its keys are right; what it names is looked for where the harness is installed."""
    added = f"--config={CONFIGS / 'paper/harness.yaml'}"
    outcome = lab.fit(added, "--print_config")
    assert outcome.code == 0, outcome.err
    found = yaml.safe_load(outcome.out)["evaluation"]["benchmarks"]["arc_easy"]
    assert found["class_path"] == "sft_lab.evaluation.benchmarks.harness.task.HarnessTask"
    assert found["init_args"]["metrics"] == ["acc_norm", "acc"]
    assert found["init_args"]["num_examples"] == 500
    assert "chat" in found["init_args"]  # a default: the class has taken the keys


@needs_harness
def test_data_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path)
    (tmp_path / "questions.jsonl").unlink()
    with pytest.raises(RequestError, match="task sums cannot be loaded: Unable to find"):
        HarnessTask("sums", ["acc"], include_path=str(tasks)).check()


@needs_harness
@pytest.mark.slow
def test_an_unknown_task_gives_those_of_like_name() -> None:
    with pytest.raises(RequestError, match="no task 'arc_eazy'; did you mean arc_easy"):
        HarnessTask("arc_eazy", ["acc"]).check()


@needs_harness
@pytest.mark.slow
def test_a_wrong_task_ends_a_run_before_it_begins(lab: Lab) -> None:
    write_tasks(lab.folder)
    lab.write("harness.yaml", CONFIG.replace("metrics: [acc_norm, acc]", "metrics: [bleu]"))
    outcome = lab.fit("--config=harness.yaml")
    assert outcome.code == 2
    assert outcome.err == "error: metrics: task sums has no 'bleu'; it has acc, acc_norm.\n"
    assert lab.runs == []


@needs_harness
@pytest.mark.slow
def test_tasks_are_measured_in_a_run_and_leave_its_training_alone(
    lab: Lab, make_lab: Callable[[Path], Lab], tmp_path: Path
) -> None:
    write_tasks(lab.folder)
    lab.write("harness.yaml", CONFIG)
    outcome = lab.fit("--config=harness.yaml", "--trainer.log_every_n_steps=1")
    assert outcome.code == 0, outcome.err
    for key in ("sums/acc_norm", "sums/acc", "answered_sums/exact_match_first"):
        assert list(lab.points(key)) == EVALUATED_STEPS
    assert set(lab.counts("answered_sums/exact_match_first").values()) == {3}
    assert list(lab.points("texts/byte_perplexity")) == EVALUATED_STEPS
    assert "ability/texts" not in lab.run.data.metrics  # less is better
    planned = lab.json("record.json")["benchmarks"]
    assert [planned[name]["protocol"]["version"] for name in ("sums", "texts")] == [3.5, 2.0]
    answering = planned["answered_sums"]
    assert answering["decoding"]["stop_strings"] == ["\n"]
    assert answering["protocol"]["max_new_tokens"] == 3
    assert (planned["sums"]["protocol"]["task"], planned["sums"]["items"]) == ("sums", 6)
    table = lab.json("answers/step_000012/answered_sums.json")
    columns = ["id", "item", "exact_match_first", "reason", "completion", "prompt"]
    assert table["columns"] == columns
    assert [row[0] for row in table["data"]] == [f"answered_sums/{n}" for n in (0, 2, 4)]

    other = tmp_path / "without"
    other.mkdir()
    plain = make_lab(other)
    assert plain.fit("--trainer.log_every_n_steps=1").code == 0
    assert plain.points("train_loss/all") == lab.points("train_loss/all")
    assert plain.points("world_math/format_free") == lab.points("world_math/format_free")
