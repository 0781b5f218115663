"""Train whole runs that evaluate on a stand-in for a vLLM server."""

from pathlib import Path

import pytest
from judge_server import ERROR_500, Reply
from tiny_lab import EVALUATED_STEPS, Lab, MakeLab
from vllm_server import COMPLETIONS, VllmStandIn

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.benchmarks.harness.task import HarnessTask
from sft_lab.evaluation.suite import EvaluationSuite

# Long enough for the tiny model's answers to differ from step to step.
LONGER = "--evaluation.benchmarks.world_math.init_args.max_new_tokens=24"


def engine(vllm: VllmStandIn) -> list[str]:
    return ["--evaluation.engine=vllm", f"--evaluation.vllm.base_url={vllm.url}"]


def answers(lab: Lab) -> list[object]:
    paths = [f"answers/step_{step:06d}/world_math.json" for step in EVALUATED_STEPS]
    return [lab.json(path)["data"] for path in paths]


@pytest.mark.slow
def test_a_run_has_the_same_scores_as_with_the_native_engine(
    vllm: VllmStandIn, make_lab: MakeLab, tmp_path: Path
) -> None:
    for name in ("native", "vllm"):
        (tmp_path / name).mkdir()
    native, served = make_lab(tmp_path / "native"), make_lab(tmp_path / "vllm")
    assert native.fit(LONGER).code == 0
    outcome = served.fit(LONGER, *engine(vllm))
    assert outcome.code == 0, outcome.err
    assert answers(served) == answers(native)
    assert len({str(found) for found in answers(native)}) > 1  # training changes them
    for key in ("world_math/format_free", "val_loss/math", "train_loss/all"):
        assert served.points(key) == native.points(key), key
    # Each evaluation loaded its own adapter and unloaded it.
    assert [name.rpartition("-")[0] for name in vllm.loaded] == [
        f"sft_lab-step-{step}" for step in EVALUATED_STEPS
    ]
    assert vllm.adapters == {}
    plan = served.json("record.json")["benchmarks"]["world_math"]
    assert plan["weights"] == f"vllm: adapters on {vllm.base}"
    assert native.json("record.json")["benchmarks"]["world_math"]["weights"] == "live"


@pytest.mark.slow
def test_a_run_whose_server_fails_can_resume_with_another_one(vllm: VllmStandIn, lab: Lab) -> None:
    arguments = [*engine(vllm), "--evaluation.vllm.max_tries=2"]
    vllm.planned[COMPLETIONS] = [ERROR_500, Reply(b"nonsense")] * 20
    vllm.planned[COMPLETIONS].insert(0, None)  # the trial at start-up
    with pytest.raises(RuntimeError, match=r"has not answered a prompt, after up to 2 tries"):
        lab.fit(*arguments)
    assert lab.run.info.status == "FAILED"
    vllm.planned.clear()
    elsewhere = vllm.url.replace("127.0.0.1", "localhost")
    outcome = lab.fit(*arguments, f"--evaluation.vllm.base_url={elsewhere}", "--ckpt_path=last")
    assert outcome.code == 0, outcome.err
    assert list(lab.points("world_math/format_free")) == EVALUATED_STEPS


def test_a_server_is_checked_before_a_run_is_created(vllm: VllmStandIn, lab: Lab) -> None:
    gone = ["--evaluation.engine=vllm", "--evaluation.vllm.base_url=http://127.0.0.1:9"]
    outcome = lab.fit(*gone)
    assert outcome.code == 2
    assert "error: evaluation.vllm: the server at http://127.0.0.1:9 cannot be" in outcome.err
    vllm.runtime_lora = False
    outcome = lab("validate", "--config=tiny.yaml", *engine(vllm))
    assert outcome.code == 2
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in outcome.err
    vllm.runtime_lora, vllm.max_model_len = True, 8
    outcome = lab.fit(*engine(vllm))
    assert outcome.code == 2
    assert "start it with --max-model-len" in outcome.err
    assert lab.runs == []


def test_an_adapter_rank_above_the_servers_limit_fails_before_the_first_step(
    vllm: VllmStandIn, lab: Lab
) -> None:
    vllm.max_lora_rank = 1
    outcome = lab.fit(*engine(vllm))
    assert outcome.code == 2
    assert "--max-lora-rank of 4 or more" in outcome.err
    assert lab.run.info.status == "FAILED"
    assert "train_loss/all" not in lab.run.data.metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.lora=null"],
            "evaluation.engine vllm hands LoRA adapters",
        ),
        (["--evaluation.weights=merged"], "evaluation.weights merged applies to engines in this"),
        (["--evaluation.vllm.base_uri=x"], "did you mean 'evaluation.vllm.base_url'?"),
        (["--evaluation.vllm.max_tries=0"], "evaluation.vllm.max_tries must be 1 or more, got 0"),
    ],
)
def test_settings_that_vllm_does_not_support_are_refused(
    lab: Lab, arguments: list[str], message: str
) -> None:
    outcome = lab.fit("--evaluation.engine=vllm", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_tasks_that_need_likelihoods_are_refused() -> None:
    tasks: dict[str, Benchmark] = {"sums": HarnessTask("sums", ["acc"])}
    with pytest.raises(RequestError, match=r"evaluation.benchmarks.sums: .* needs likelihoods"):
        EvaluationSuite(tasks, engine="vllm")
