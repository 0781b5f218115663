"""``fit --plan`` against the runs that it tells of."""

import json
from typing import Any

import pytest
from tiny_lab import EVALUATED_STEPS, FinishedRun, Lab
from transformers import AutoConfig

from sft_lab.commands.plan import plan_text
from sft_lab.cost.known_speed import Speed, Work, minutes
from sft_lab.cost.run_cost import run_cost
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse
from sft_lab.runs.machine import Machine


def plan(lab: Lab, *arguments: str) -> dict[str, Any]:
    outcome = lab.fit("--plan", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    told: dict[str, Any] = json.loads(outcome.out)
    return told


def test_the_plan_is_what_a_finished_run_has_done(finished: FinishedRun) -> None:
    told = plan(finished.lab, "--config=scripted.yaml")
    record = finished.lab.json("record.json")["stages"]
    for name, stage in told["stages"].items():
        trained = record[name]["trained"].values()
        assert (stage["steps"], stage["passes"]) == (record[name]["steps"], record[name]["passes"])
        for key in ("samples", "tokens", "target_tokens"):
            assert stage[key] == sum(count[key] for count in trained)
    assert told["steps"] == max(finished.lab.points("progress/tokens"))
    assert told["tokens"] == max(finished.lab.points("progress/tokens").values())
    assert told["samples"] == max(finished.lab.points("progress/samples").values())
    evaluated = finished.lab.points("world_math/accuracy")
    assert sorted(evaluated) == EVALUATED_STEPS
    # Before the first step and at both boundaries; every fourth step besides.
    assert (told["evaluations"]["full"], told["evaluations"]["between"]) == (3, 2)
    # Four items each: world_math answers with 4 tokens, scripted with 2.
    assert told["evaluations"]["generated_tokens"] == 4 * 4 + 4 * 2
    assert told["evaluations"]["total_generated_tokens"] == 5 * 24


def test_minutes_are_those_of_an_earlier_run_like_it(finished: FinishedRun) -> None:
    lab = finished.lab
    told = plan(lab, "--config=scripted.yaml")["minutes"]
    run_id = lab.run.info.run_id
    assert told["source"].startswith(f"run {run_id[:8]} (tiny")
    # The same run again: its tokens in its own training time.
    speeds, tokens = lab.points("speed/tokens_per_s"), lab.points("progress/tokens")
    before, seconds = 0.0, 0.0
    for step, speed in speeds.items():
        seconds += (tokens[step] - before) / speed
        before = tokens[step]
    assert told["training"] == pytest.approx(seconds / 60)
    # Four evaluations come before the last step, where the share is logged; the plan has five.
    share = lab.points("time/eval_share")[12]
    assert told["evaluation"] == pytest.approx(5 / 4 * seconds * share / (1 - share) / 60)
    other = plan(lab, "--config=scripted.yaml", "--data.micro_batch_size=4")["minutes"]
    assert other["source"].endswith("which had data.micro_batch_size 2")


def test_without_an_earlier_run_nothing_is_made_up(lab: Lab) -> None:
    told = plan(lab)
    assert told["minutes"] is None
    assert lab.runs == []
    text = lab.fit("--plan")
    assert "time unknown: no earlier run of this base here; --measure times it" in text.out


def test_other_bases_and_quantisations_tell_nothing(finished: FinishedRun) -> None:
    told = plan(finished.lab, "--config=scripted.yaml", "--model.quantization=bf16")
    assert told["minutes"] is None


def test_measuring_times_the_run_itself_and_records_nothing(lab: Lab) -> None:
    told = plan(lab, "--measure")["minutes"]
    assert told["training"] > 0
    assert told["evaluation"] > 0
    assert "3 steps" in told["source"]
    assert lab.runs == []


def test_the_largest_micro_batch_that_fits_divides_the_batch(lab: Lab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_LAB_WORLD", str(lab.world))
        config = parse([f"--config={lab.folder}/tiny.yaml"])
        cost = run_cost(plan_data(config), config.model_settings)
    totals = cost.micro_batch_bytes
    assert list(totals) == [1, 2, 4]
    assert totals[1] < totals[2] < totals[4]
    assert cost.memory.total == totals[2]
    assert cost.largest_micro_batch_size(totals[4]) == 4
    assert cost.largest_micro_batch_size(totals[4] - 1) == 2
    assert cost.largest_micro_batch_size(totals[1] - 1) is None
    text = plan_text(cost, Machine("a machine", totals[2], totals[1]))
    assert "the run does not fit, and the largest data.micro_batch_size that fits is 1" in text


def test_memory_follows_the_longest_rows(lab: Lab) -> None:
    """Rows of the tiny world: 24 math, 20 of them trained, all of the tiny base's byte tokens."""
    told = plan(lab)["memory"]
    # Rank 4 beside every layer: r * (in + out) for q, o 64; k, v 48; gate, up, down 96; two layers.
    adapters = 4 * 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert told["adapters"] == told["gradients"] == adapters
    # Two moments and a step for each of 2 * 7 * 2 tensors.
    assert told["optimizer"] == 2 * adapters + 4 * 28
    assert told["evaluation_weights"] == 0
    # Keys and values of two layers, two heads of 8, float32; four prompts "<user>math: what is 3
    # plus 1?<end><assistant>" of 26 tokens, 4 for the answer and 16 for room.
    longest = len("math: what is 3 plus 1?") + 3
    assert told["kv_cache"] == 2 * 2 * 2 * 8 * 4 * 4 * (longest + 4 + 16)


@pytest.mark.parametrize(
    ("answer", "tokens", "logits"),
    [
        (101, 4 * (26 + 100), 4 * 101),
        # A pass reads no more than 2,048 tokens, of which all may be drafts but a few.
        (1001, 2048, 2048),
        # But a prompt and its draft are always in one.
        (3001, 26 + 3000, 26 + 3000),
    ],
)
def test_drafts_take_memory_in_the_pass_that_checks_them(
    lab: Lab, answer: int, tokens: int, logits: int
) -> None:
    """Four prompts of 26 tokens, and drafts of one less than an answer may have."""
    limit = f"--evaluation.benchmarks.world_math.init_args.max_new_tokens={answer}"
    told = plan(lab, limit)["memory"]
    config = AutoConfig.from_pretrained(lab.world / "base")
    # In float32: one layer's values four times over, hidden (32) and widest (64), and the logits of
    # each prompt's last token and of the draft behind it.
    work = 4 * 4 * (32 + 64) * tokens + 4 * config.vocab_size * logits
    assert told["evaluation_work"] == work
    without = plan(lab, limit, "--evaluation.drafts=false")["memory"]["evaluation_work"]
    assert without < work


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-mixed", 2)])
def test_a_merged_copy_is_counted(lab: Lab, precision: str, size: int) -> None:
    told = plan(lab, "--evaluation.weights=merged", f"--trainer.precision={precision}")
    assert told["memory"]["evaluation_weights"] == size * told["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.quantization=nf5"], "model.quantization"),
        (["--ckpt_path=last"], "--plan looks at a whole run; leave out --ckpt_path."),
        (["--model.base=./nowhere"], "there is no ./nowhere"),
        (["--data.micro_batch_size=3"], "got 4 and 3"),
    ],
)
def test_what_fit_refuses_the_plan_refuses(lab: Lab, arguments: list[str], message: str) -> None:
    outcome = lab.fit("--plan", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) <= 2
    assert outcome.out == ""


def test_a_budget_shrinks_the_evaluations_between() -> None:
    # 1,000 s of training; full evaluations of 10 s. A tenth of the time, 111 s, less 20 s for the
    # two at the ends: more than the 40 s of all four between, so nothing is cut.
    work = Work(1000, 100_000, 2, 4, {"m": 100}, {"m": 1000}, budget=0.1)
    speed = Speed(100.0, 10.0, 1000, "a run")
    assert minutes(work, speed).evaluation == pytest.approx(60 / 60)
    # 25.6 s for all: 5.6 s for four between, 1.4 s each, 14 of 100 items, but 16 are the least.
    tight = Work(1000, 100_000, 2, 4, {"m": 100}, {"m": 1000}, budget=0.025)
    assert minutes(tight, speed).evaluation == pytest.approx((20 + 4 * 1.6) / 60)
