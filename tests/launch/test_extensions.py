"""Run the extensions of the docs, each one file: a source, a benchmark, a strategy, a callback."""

import gzip
import json

import pytest
from benchmark_files import write_benchmarks
from conftest import chat, write_jsonl
from docs_blocks import code_block
from tiny_lab import CONFIGS, EVALUATED_STEPS, Lab

pytestmark = pytest.mark.slow

POEMS = ("--corpus.sources.poems.path=poems.jsonl", "--data.stages.second.mixture.poems=1")


def write_poems(lab: Lab) -> None:
    write_jsonl(lab.folder / "poems.jsonl", [chat(f"A poem {n}", "roses") for n in range(12)])


def test_a_source_is_a_file(lab: Lab) -> None:
    write_poems(lab)
    outcome = lab.fit(*POEMS)
    assert outcome.code == 0, outcome.err
    trained = lab.json("record.json")["stages"]["second"]["trained"]
    assert trained["poems"]["samples"] == 12 - 4
    assert trained["general"]["samples"] == 20
    assert "val_loss/poems" in lab.run.data.metrics


def test_a_benchmark_is_a_class(lab: Lab) -> None:
    write_poems(lab)
    lab.write("my_benchmarks.py", code_block("# my_benchmarks.py"))
    lab.write("rhymes.yaml", code_block("# rhymes.yaml"))
    items = [
        {"id": str(n), "messages": [{"role": "user", "content": "Roses"}], "rhyme": rhyme}
        for n, rhyme in enumerate(["", "", "never said"])
    ]
    write_jsonl(lab.folder / "rhymes.jsonl", items)
    outcome = lab.fit("--config=rhymes.yaml", *POEMS)
    assert outcome.code == 0, outcome.err
    # Every answer ends in the empty rhyme.
    scores = lab.points("rhymes/accuracy")
    assert scores == pytest.approx(dict.fromkeys([0, 4, 5, 8, 12, 14], 2 / 3))
    assert lab.points("change_from_base/poems") == dict.fromkeys([4, 5, 8, 12, 14], 0.0)
    # The last stage trains poems: nothing is later that could have lost them.
    assert lab.points("retention/poems") == {}


def test_formats_orders_losses_and_hand_overs_are_classes(lab: Lab) -> None:
    for name in ("my_formats", "my_orders", "my_losses", "my_policies"):
        lab.write(f"{name}.py", code_block(f"# {name}.py"))
    lab.write("extended.yaml", code_block("# extended.yaml"))
    rows = [{"lines": f"Say {n}|{n}|And {n + 1}|{n + 1}"} for n in range(12)]
    write_jsonl(lab.folder / "talk.jsonl", rows)
    outcome = lab.fit("--config=extended.yaml")
    assert outcome.code == 0, outcome.err
    table = lab.artifact("windows/second.tsv").read_text().splitlines()[1:]
    sources = [line.split("\t")[1] for line in table]
    assert sources == sorted(sources, key=["general", "math", "talk"].index)


def test_a_strategy_is_a_config(lab: Lab) -> None:
    content = (lab.folder / "tiny.yaml").read_text()
    stages = "  stages:\n    all: {mixture: {math: 1, general: 1/2}, max_steps: 3, lr: 1e-2}\n"
    lab.write("half.yaml", content[: content.index("  stages:")] + stages)
    outcome = lab("fit", "--config=half.yaml")
    assert outcome.code == 0, outcome.err
    assert lab.run.data.tags["strategy"] == "half"
    assert list(lab.points("world_math/format_free")) == [0, 3]


def test_a_callback_and_an_engine_are_classes(lab: Lab) -> None:
    for name in ("my_callbacks", "my_engines"):
        lab.write(f"{name}.py", code_block(f"# {name}.py"))
    outcome = lab.fit(
        "--trainer.callbacks+=my_callbacks.Mine",
        "--trainer.callbacks.path=n.json",
        "--evaluation.engine={class_path: my_engines.Echo}",
    )
    assert outcome.code == 0, outcome.err
    scores = json.loads((lab.folder / "n.json").read_text())
    assert [int(step) for step in scores] == EVALUATED_STEPS
    assert {step: lab.points("world_math/format_free")[int(step)] for step in scores} == {
        step: found["world_math/format_free"] for step, found in scores.items()
    }
    answers = lab.json("answers/step_000000/world_math.json")["data"]
    assert all(prompt.endswith(answer) for *_, answer, _, prompt in answers)
    assert lab.run.data.metrics["progress/samples"] == 45  # the lab's own callbacks still run


def test_the_sources_of_the_docs_are_read(lab: Lab) -> None:
    right = {"query": "1+1?", "response": "#### 2", "correct": True}
    wrong = {"query": "1+2?", "response": "#### 4", "correct": False}
    lines = "".join(json.dumps(row) + "\n" for row in (right, wrong, {**right, "query": "2+0?"}))
    (lab.folder / "rft.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    alpaca = {"instruction": "Print 1.", "input": "", "output": "print(1)"}
    lab.write("alpaca.json", json.dumps([alpaca, alpaca]))
    turns = ("Write it in Python.", "x"), ("What are equations?", "Hm."), ("A poem!", "Roses.")
    chats = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for q, a in turns
    ]
    write_jsonl(lab.folder / "sharegpt.jsonl", chats)
    lab.write("sources.yaml", code_block("# sources.yaml"))
    lab.write(
        "stages.yaml",
        "model: {base: world://base}\nevaluation: {every_n_steps: 1, benchmarks: {}}\n"
        "data: {stages: {all: {mixture: {math: 1, code: 1, general: 1}, epochs: 1, lr: 1e-3}}}\n",
    )
    outcome = lab("inspect", "--config=sources.yaml", "--config=stages.yaml", "--json", "-n0")
    assert outcome.code == 0, outcome.err
    mixture = json.loads(outcome.out)["stages"]["all"]["mixture"]
    assert {name: part["rows"] for name, part in mixture.items()} == {
        "math": 2,
        "code": 1,
        "general": 1,
    }


def test_a_test_question_in_a_source_is_reported_and_dropped_on_request(lab: Lab) -> None:
    question = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many in all?"
    item = {"id": "g1", "messages": [{"role": "user", "content": question}], "answer": "3"}
    write_jsonl(lab.folder / "items.jsonl", [item])
    hidden = chat(f"My homework: {question.upper()} Please help.", "#### 3")
    rows = [chat(f"A poem {n}", "roses") for n in range(12)]
    write_jsonl(lab.folder / "poems.jsonl", [*rows, hidden])
    benchmark = "evaluation.benchmarks.planted"
    arguments = (
        "--config=tiny.yaml",
        *POEMS,
        f"--{benchmark}.class_path=sft_lab.evaluation.benchmarks.world.WorldMath",
        f"--{benchmark}.init_args={{path: items.jsonl, source: math, max_new_tokens: 4}}",
        "-n0",
    )
    outcome = lab("inspect", *arguments)
    assert outcome.code == 0, outcome.err
    assert "poems: 1 row contains an item of planted, or 13 words of one:" in outcome.out
    assert "line 13: planted g1 (13-gram): a robe takes 2 bolts of blue" in outcome.out
    outcome = lab("inspect", *arguments, "--corpus.contamination=drop")
    assert (
        "poems: 1 left out: contains an item of planted (e.g. line 13 of poems.jsonl)"
        in outcome.out
    )


def test_published_benchmarks_are_measured_next_to_a_runs_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_DATA", str(write_benchmarks(lab.folder / "data")))
    sizes = ("gsm8k.init_args.num_examples=3", "humaneval.init_args.num_examples=2")
    overrides = [f"--evaluation.benchmarks.{size}" for size in sizes]
    config = CONFIGS / "real_files/benchmarks.yaml"
    outcome = lab.fit(f"--config={config}", *overrides)
    assert outcome.code == 0, outcome.err
    for key in ("gsm8k/strict", "gsm8k/flexible", "humaneval/pass_at_1", "world_math/format_free"):
        assert set(lab.points(key)) == set(EVALUATED_STEPS), key
    assert lab.counts("humaneval/pass_at_1")[12] == 2
    plan = lab.json("record.json")["benchmarks"]
    assert plan["humaneval"]["conditions"]["sandbox"] in ("isolated", "limited")
    assert plan["gsm8k"]["conditions"] == {}
    assert plan["gsm8k"]["agrees_with"] == {"strict": "the grader of RFT (arXiv 2308.01825)"}
    assert list(plan["humaneval"]["agrees_with"]) == ["pass_at_1_official"]
    table = lab.json("answers/step_000012/gsm8k.json")
    assert table["columns"][:5] == ["id", "item", "split", "flexible", "strict"]


def test_a_run_draws_several_samples_per_problem(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_DATA", str(write_benchmarks(lab.folder / "data")))
    lab.write(
        "samples.yaml",
        "evaluation:\n"
        "  benchmarks:\n"
        "    gsm8k: {init_args: {num_examples: 3}}\n"
        "    humaneval: {init_args: {num_examples: 2, max_new_tokens: 8}}\n"
        "  decoding: {humaneval: {num_samples: 10, temperature: 1.0}}\n",
    )
    files = [f"--config={CONFIGS / 'real_files/benchmarks.yaml'}", "--config=samples.yaml"]
    assert lab.fit(*files).code == 0
    table = lab.json("answers/step_000012/humaneval.json")
    assert [row[0] for row in table["data"]] == [
        f"HumanEval/{n}" for n in (0, 1) for _ in range(10)
    ]
    place = table["columns"].index("completion")
    completions = {row[place] for row in table["data"][:10]}
    assert len(completions) == 10  # a random model seldom says the same twice
    for key in ("humaneval/pass_at_1", "humaneval/pass_at_10"):
        assert set(lab.points(key)) == set(EVALUATED_STEPS)
        assert lab.counts(key)[12] == 2
    decoding = lab.json("record.json")["benchmarks"]["humaneval"]["decoding"]
    assert (decoding["num_samples"], decoding["temperature"]) == (10, 1.0)


CONVERSATION = '''
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict


class Conversation(Benchmark):
    """Asks the same again, whatever the answer was."""

    score_names = ("accuracy",)

    def grade(self, items, completions):
        return [Verdict({"accuracy": True}, "") for _ in items]

    def follow_up(self, item, completion):
        if item.id.endswith("/2"):
            return None
        return Item(f"{item.id}/2", ({"role": "user", "content": "Again."},), item.row)
'''


def test_samples_stay_independent_in_later_turns(lab: Lab) -> None:
    lab.write("conversation.py", CONVERSATION)
    lab.write(
        "conversation.yaml",
        "evaluation:\n"
        "  benchmarks:\n"
        "    talk:\n"
        "      class_path: conversation.Conversation\n"
        "      init_args: {path: world://data/world_math.jsonl, max_new_tokens: 8, "
        "num_examples: 1}\n"
        "  decoding: {talk: {num_samples: 5, temperature: 1.0}}\n",
    )
    outcome = lab.fit("--config=conversation.yaml")
    assert outcome.code == 0, outcome.err
    table = lab.json("answers/step_000012/talk.json")
    place = table["columns"].index("completion")
    completions = [row[place] for row in table["data"]]
    assert [row[0] for row in table["data"]] == ["math/0"] * 5 + ["math/0/2"] * 5
    assert len(set(completions[:5])) == 5
    # All five get the same prompt and still draw different answers.
    assert len(set(completions[5:])) == 5
