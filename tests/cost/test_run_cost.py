"""Test ``fit --plan`` against the runs that it predicts."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import EVALUATED_STEPS, FinishedRun, Lab
from transformers import AutoConfig, AutoModelForCausalLM

from sft_lab.commands.plan import plan_text
from sft_lab.cost.known_speed import Speed, Work, minutes
from sft_lab.cost.run_cost import run_cost
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse
from sft_lab.runs.machine import Machine

ENGINE = """
from sft_lab.evaluation.generation import Engine
from sft_lab.evaluation.generation.engine import Footprint


class Lean(Engine):
    def __init__(self, cached: int = 7) -> None:
        self.cached = cached

    def complete(self, model, prompts, **settings):
        return [""] * len(prompts)

    def footprint(self, rows, longest_prompt, max_new_tokens, decoding):
        return Footprint(self.cached, 1, 1)
"""


def plan(lab: Lab, *arguments: str) -> dict[str, Any]:
    outcome = lab.fit("--plan", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    cost: dict[str, Any] = json.loads(outcome.out)
    return cost


def test_a_plan_for_other_devices_counts_the_memory_of_each(finished: FinishedRun) -> None:
    one, two = (plan(finished.lab, *flags) for flags in ((), ("--devices=2", "--memory=24GiB")))
    # DDP keeps a second copy of the gradients, and a batch of 4 leaves micro-batches of 1 and 2.
    assert two["memory"]["exchanged"] == one["memory"]["gradients"] > 0
    assert two["memory"]["total"] == one["memory"]["total"] + one["memory"]["gradients"]
    assert (one["memory"]["exchanged"], one["devices"], two["devices"]) == (0, 1, 2)
    assert list(one["micro_batch_bytes"]) == ["1", "2", "4"]
    assert list(two["micro_batch_bytes"]) == ["1", "2"]
    assert two["machine"] == {"name": "a device of 24.0 GiB", "memory": 24 << 30, "free": 24 << 30}
    assert (two["largest_micro_batch_size"], two["minutes"]) == (2, None)
    # The finished run had one device, so it says nothing of two, nor of other devices.
    assert plan(finished.lab, "--devices=2")["minutes"] is None
    assert plan(finished.lab, "--memory=24GiB")["minutes"] is None
    assert plan(finished.lab)["minutes"] is not None
    text = finished.lab.fit("--plan", "--devices=2", "--memory=0.01MiB").out
    assert "memory of each of 2 devices (DDP)" in text
    assert "gradients under way to other devices" in text
    assert "no data.micro_batch_size fits" in text
    assert "by trainer.strategy: ddp takes" in text
    assert "no earlier run of this base on 2 devices like these" in text


def test_a_plan_for_a_sharded_model_divides_what_is_kept(finished: FinishedRun) -> None:
    flags = ("--devices=2", "--memory=24GiB", "--model.lora=null")
    one = plan(finished.lab, "--model.lora=null")["memory"]
    two = plan(finished.lab, *flags, "--trainer.strategy=fsdp")
    for part in ("weights", "gradients", "optimizer"):
        assert two["memory"][part] == math.ceil(one[part] / 2)
    base = AutoModelForCausalLM.from_pretrained(finished.lab.world / "base")
    layer = sum(weight.nbytes for weight in base.model.layers[0].parameters())
    inside = sum(weight.nbytes for weight in base.model.layers.parameters())
    outside = sum(weight.nbytes for weight in base.parameters()) - inside
    # In float32: two layers, the gradients of one and their sum, and all outside of them.
    assert two["memory"]["gathered"] == 4 * layer + 2 * outside
    ddp = plan(finished.lab, *flags)
    assert ddp["by_strategy"] == two["by_strategy"]
    assert two["by_strategy"] == {"ddp": ddp["memory"]["total"], "fsdp": two["memory"]["total"]}
    text = finished.lab.fit("--plan", "--devices=2", "--model.quantization=nf4").out
    assert "fsdp does not shard such a model" in text


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        ("--trainer.strategy=fsdp", "shards a model over several devices, and the run has one"),
        ("--devices=0", "--devices must be a number of devices, 1 or more, got 0"),
        ("--devices=x", "--devices must be a number of devices, 1 or more, got x"),
        ("--devices=3", "data.micro_batch_size times the number of devices, got 4, 2 and 3"),
        ("--memory=24", "--memory must be a size such as 24GiB, got 24"),
        ("--memory=0GiB", "--memory must be a size such as 24GiB, got 0GiB"),
    ],
)
def test_a_plan_for_devices_that_cannot_be_is_refused(lab: Lab, flag: str, error: str) -> None:
    outcome = lab.fit("--plan", flag)
    assert outcome.code == 2
    assert error in outcome.err


def test_the_table_of_sizes_is_what_its_script_prints() -> None:
    docs = Path(__file__).parents[2] / "docs"
    script = runpy.run_path(str(docs / "memory_table.py"))
    lines = script["table"]({"7B": script["BASES"]["7B"]})
    assert lines in (docs / "devices.md").read_text()


def test_the_plan_equals_a_finished_run(finished: FinishedRun) -> None:
    cost = plan(finished.lab, "--config=scripted.yaml")
    record = finished.lab.json("record.json")["stages"]
    for name, stage in cost["stages"].items():
        trained = record[name]["trained"].values()
        assert (stage["steps"], stage["passes"]) == (record[name]["steps"], record[name]["passes"])
        for key in ("samples", "tokens", "target_tokens"):
            assert stage[key] == sum(count[key] for count in trained)
    assert cost["steps"] == max(finished.lab.points("progress/tokens"))
    assert cost["tokens"] == max(finished.lab.points("progress/tokens").values())
    assert cost["samples"] == max(finished.lab.points("progress/samples").values())
    evaluated = finished.lab.points("world_math/format_free")
    assert sorted(evaluated) == EVALUATED_STEPS
    # Before the first step and at both boundaries; every fourth step besides.
    assert (cost["evaluations"]["full"], cost["evaluations"]["between"]) == (3, 2)
    # Four items each: world_math answers with 4 tokens, scripted with 2.
    assert cost["evaluations"]["generated_tokens"] == 4 * 4 + 4 * 2
    assert cost["evaluations"]["total_generated_tokens"] == 5 * 24


def test_minutes_are_those_of_a_similar_earlier_run(finished: FinishedRun) -> None:
    lab = finished.lab
    cost = plan(lab, "--config=scripted.yaml")["minutes"]
    run_id = lab.run.info.run_id
    assert cost["source"].startswith(f"run {run_id[:8]} (tiny")
    # The same run again: its tokens in its own training time.
    speeds, tokens = lab.points("speed/tokens_per_s"), lab.points("progress/tokens")
    before, seconds = 0.0, 0.0
    for step, speed in speeds.items():
        seconds += (tokens[step] - before) / speed
        before = tokens[step]
    assert cost["training"] == pytest.approx(seconds / 60)
    # Four evaluations come before the last step, where the share is logged; the plan has five.
    share = lab.points("time/eval_share")[12]
    assert cost["evaluation"] == pytest.approx(5 / 4 * seconds * share / (1 - share) / 60)
    other = plan(lab, "--config=scripted.yaml", "--data.micro_batch_size=4")["minutes"]
    assert other["source"].endswith("which had data.micro_batch_size 2")


def test_minutes_are_unknown_without_an_earlier_run(lab: Lab) -> None:
    cost = plan(lab)
    assert cost["minutes"] is None
    assert lab.runs == []
    text = lab.fit("--plan")
    assert "time: unknown, no earlier run of this base on this machine; --measure" in text.out


def test_runs_of_another_quantisation_are_not_used(finished: FinishedRun) -> None:
    cost = plan(finished.lab, "--config=scripted.yaml", "--model.quantization=bf16")
    assert cost["minutes"] is None


def test_measuring_times_the_run_itself_and_records_nothing(lab: Lab) -> None:
    cost = plan(lab, "--measure")["minutes"]
    assert cost["training"] > 0
    assert cost["evaluation"] > 0
    assert "3 steps" in cost["source"]
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
    """Use the tiny world's rows: 24 of math, 20 of them trained, in the tiny base's byte tokens."""
    cost = plan(lab)["memory"]
    # Rank 4 for every layer: r * (in + out) for q, o 64; k, v 48; gate, up, down 96; two layers.
    adapters = 4 * 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert cost["adapters"] == cost["gradients"] == adapters
    # Two moments and a step for each of 2 * 7 * 2 tensors.
    assert cost["optimizer"] == 2 * adapters + 4 * 28
    assert cost["evaluation_weights"] == 0
    # Keys and values of two layers, two heads of 8, float32; four prompts "<user>math: what is 3
    # plus 1?<end><assistant>" of 26 tokens, 4 for the answer and 16 for room.
    longest = len("math: what is 3 plus 1?") + 3
    assert cost["kv_cache"] == 2 * 2 * 2 * 8 * 4 * 4 * (longest + 4 + 16)


@pytest.mark.parametrize(
    ("answer", "tokens", "logits"),
    [
        (101, 4 * (26 + 100), 4 * 101),
        # A pass reads at most 2,048 tokens, most of which may be drafts.
        (1001, 2048, 2048),
        # But a prompt and its draft always share a pass.
        (3001, 26 + 3000, 26 + 3000),
    ],
)
def test_drafts_need_memory_in_the_pass_that_checks_them(
    lab: Lab, answer: int, tokens: int, logits: int
) -> None:
    """Use four prompts of 26 tokens, and drafts one token shorter than the longest answer."""
    limit = f"--evaluation.benchmarks.world_math.init_args.max_new_tokens={answer}"
    cost = plan(lab, limit)["memory"]
    config = AutoConfig.from_pretrained(lab.world / "base")
    # In float32: one layer's values four times over, hidden (32) and widest (64), and the logits of
    # each prompt's last token and of the draft after it.
    work = 4 * 4 * (32 + 64) * tokens + 4 * config.vocab_size * logits
    assert cost["evaluation_work"] == work
    without = plan(lab, limit, "--evaluation.drafts=false")["memory"]["evaluation_work"]
    assert without < work


def test_an_engine_declares_the_memory_it_needs(lab: Lab) -> None:
    lab.write("engines_of_mine.py", ENGINE)
    engine = "--evaluation.engine={class_path: engines_of_mine.Lean}"
    cost = plan(lab, engine)["memory"]
    assert cost["kv_cache"] == 2 * 2 * 2 * 8 * 4 * 7  # two layers, keys and values, seven tokens
    remote = plan(lab, engine, "--evaluation.engine.init_args={cached: 0}")["memory"]
    assert remote["kv_cache"] == 0


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-mixed", 2)])
def test_a_merged_copy_is_counted(lab: Lab, precision: str, size: int) -> None:
    cost = plan(lab, "--evaluation.weights=merged", f"--trainer.precision={precision}")
    assert cost["memory"]["evaluation_weights"] == size * cost["parameters"]


def test_weights_kept_dequantised_are_counted(lab: Lab) -> None:
    memories = [
        plan(lab, "--model.quantization=nf4", f"--model.dequantize={value}")["memory"]
        for value in ("each_step", "cached")
    ]
    kept = memories[1]["weights"] - memories[0]["weights"]
    # In float32, two layers of q and o, of k and v with half as many heads, gate, up and down.
    assert kept == 4 * 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.quantization=nf5"], "model.quantization"),
        (["--model.dequantize=cached"], "model.dequantize: cached is for a base in nf4, and"),
        (["--ckpt_path=last"], "--plan describes a whole run; leave out --ckpt_path."),
        (["--model.base=./nowhere"], "no such folder: ./nowhere"),
        (["--data.micro_batch_size=3"], "got 4 and 3"),
    ],
)
def test_the_plan_refuses_the_same_requests_as_fit(
    lab: Lab, arguments: list[str], message: str
) -> None:
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
    # 25.6 s for all: 5.6 s for four between, 1.4 s each, 14 of 100 items, but the minimum is 16.
    tight = Work(1000, 100_000, 2, 4, {"m": 100}, {"m": 1000}, budget=0.025)
    assert minutes(tight, speed).evaluation == pytest.approx((20 + 4 * 1.6) / 60)
