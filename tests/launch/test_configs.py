"""Parse and plan every shipped config of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import TULU3, add_sources
from conftest import byte_tokenizer, write_jsonl
from hub_cache import HubCache
from tiny_lab import CONFIGS, Lab
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Qwen3Config,
)

from sft_lab.data.row_filters import RowFilter
from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse
from sft_lab.training.schedule import Schedule

pytestmark = pytest.mark.slow

RUNS = sorted(
    path for path in CONFIGS.glob("*/*.yaml") if "data" in yaml.safe_load(path.read_text())
)
MODELS = ("qwen3_0.6b", "qwen2.5_1.5b", "llama3.2_1b", "gemma3_1b", "smollm3_3b", "llama3_8b")
STRATEGIES = {
    "multi_task": ["all"],
    "sequential": ["code", "math", "general"],
    "mixed_sequential": ["specialize", "generalize"],
    "dmt": ["specialize", "generalize"],
    "guarded": ["specialize", "generalize"],
    "math_only": ["math"],
    "code_only": ["code"],
    "general_only": ["general"],
    "tulu3": ["skills", "chat"],
}
WORLD = STRATEGIES.keys() - {"tulu3"}

LOGGERS = """
trainer:
  logger:
    - class_path: sft_lab.runs.logger.RunLogger
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: logs, name: "", version: ""}
"""
SANDBOX = "--evaluation.benchmarks.humaneval.init_args.sandbox"

Plan = Callable[..., Schedule]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Parse a config and plan its stages over the shipped world, without training."""
    monkeypatch.chdir(tmp_path)

    def planned(path: Path, *arguments: str) -> Schedule:
        return plan_data(parse([f"--config={path}", *arguments])).schedule

    return planned


def stage_names(schedule: Schedule) -> list[str]:
    return [stage.name for stage in schedule.stages]


def named(folder: str) -> list[Path]:
    return [path for path in RUNS if path.parent.name == folder]


def test_every_config_is_tested() -> None:
    assert {path.parent.name for path in RUNS} == {
        "world",
        "llama2_7b",
        "paper_exact",
        "qwen2.5_0.5b",
        "real_files",
        *MODELS,
    }
    assert {path.stem for path in named("world")} == WORLD


@pytest.mark.parametrize("path", named("world"), ids=lambda path: path.stem)
def test_a_world_config_plans_its_stages(plan: Plan, path: Path) -> None:
    assert stage_names(plan(path)) == STRATEGIES[path.stem]


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("llama2_7b", "paper_exact", "qwen2.5_0.5b", "gemma3_1b")
        for path in named(folder)
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_config_with_hub_names_plans_over_the_hub_s_cache(
    plan: Plan,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub_cache: HubCache,
) -> None:
    monkeypatch.setenv("SFT_LAB_BASE", "world://base")
    add_sources(hub_cache)
    if path.parent.name == "paper_exact":  # its math rows are not on the hub
        rows = [{"query": f"{n}?", "response": f"#### {n}"} for n in range(300)]
        write_jsonl(tmp_path / "u33b.jsonl", rows)
    # The isolation that the configs ask for is unavailable on some machines.
    schedule = plan(path, f"{SANDBOX}=isolated_or_limited")
    assert stage_names(schedule) == STRATEGIES[path.stem]
    epochs = 1 if path.stem == "tulu3" else 3
    assert all(stage.stage.epochs == epochs for stage in schedule.stages)


@pytest.mark.parametrize("folder", MODELS)
def test_a_modern_model_has_the_paper_s_stages_and_those_of_tulu_3(folder: str) -> None:
    assert {path.stem for path in named(folder)} == {"sequential", "dmt", "tulu3"}
    for path in named(folder):
        config = parse([f"--config={path}"]).plain
        assert list(config["data"]["stages"]) == STRATEGIES[path.stem]
        assert "/" in config["model"]["base"]


def test_every_row_of_tulu_3_is_in_one_source() -> None:
    sources = yaml.safe_load((CONFIGS / "tulu3/corpus.yaml").read_text())["sources"]
    filters = {name: RowFilter(source["where"]) for name, source in sources.items()}
    for kind in TULU3:
        found = [name for name, chosen in filters.items() if chosen.keeps_row({"source": kind})]
        assert len(found) == ("hard_coded" not in kind), (kind, found)


@pytest.mark.parametrize(
    ("folder", "strategy", "kind"),
    [
        ("qwen3_0.6b", "dmt", Qwen3Config),
        ("gemma3_1b", "tulu3", Gemma3TextConfig),
    ],
)
def test_a_real_model_s_config_trains_by_hub_names_alone(
    lab: Lab, hub_cache: HubCache, folder: str, strategy: str, kind: Any
) -> None:
    config = CONFIGS / folder / f"{strategy}.yaml"
    base = parse([f"--config={config}"]).plain["model"]["base"]
    tokenizer = byte_tokenizer(bos_token="<system>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    special = {f"{name}_token_id": 4 for name in ("bos", "eos", "pad")}
    model = AutoModelForCausalLM.from_config(
        kind(
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            num_key_value_heads=2,
            **sizes,
            **special,
        )
    )
    for part in (tokenizer, model):
        part.save_pretrained(lab.folder / "base")
    hub_cache.add_model(base, lab.folder / "base")
    add_sources(hub_cache)
    lab.write("loggers.yaml", LOGGERS)
    benchmarks = "--evaluation.benchmarks"
    outcome = lab(
        "fit",
        f"--config={config}",
        "--config=loggers.yaml",
        *(f"--data.stages.{name}.max_steps=1" for name in STRATEGIES[strategy]),
        *("--data.batch_size=4", "--data.micro_batch_size=2", "--evaluation.budget=null"),
        *(f"{benchmarks}.{n}.init_args.max_new_tokens=2" for n in ("gsm8k", "humaneval", "ifeval")),
        f"{SANDBOX}=isolated_or_limited",
    )
    assert outcome.code == 0, outcome.err
    assert len(lab.json("record.json")["commits"]) >= 6
    assert set(lab.points("gsm8k/flexible")) == {0, 1, 2}
    # A logger of Lightning's beside the record gets the same metrics.
    [header, *_] = (lab.folder / "logs/metrics.csv").read_text().splitlines()
    assert {"gsm8k/flexible", "train_loss/all", "lr", "step"} <= set(header.split(","))


def test_runs_for_the_paper_s_figures_name_their_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("llama2_7b", "paper_exact"):
        for path in named(folder):
            text = path.read_text()
            assert "trainer: [../trainer.yaml, protocol.yaml]" in text, path
            assert folder == "paper_exact" or "It differs from the paper in: Llama 2 for" in text
    tags = parse([f"--config={CONFIGS / 'llama2_7b/dmt.yaml'}"]).logger["tags"]
    assert "under another protocol: Llama 2 for LLaMA-1" in tags["protocol"]


@pytest.mark.parametrize(
    "path",
    [
        # `everything` is inspected whole in test_real_files; the stages of the others are alike.
        path if path.stem == "dmt" else pytest.param(path, marks=pytest.mark.extended)
        for path in named("real_files")
    ],
    ids=lambda path: path.stem,
)
def test_a_config_of_real_files_plans(
    plan: Plan, path: Path, shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_DATA", str(shared_data("gsm8k/train.jsonl.gz").parents[1]))
    schedule = plan(path)
    assert stage_names(schedule) == {**STRATEGIES, "everything": ["all"]}[path.stem]
    assert schedule.seen(schedule.num_steps).samples >= 500


def test_the_replay_share_is_set_by_one_key(plan: Plan) -> None:
    dmt, mixed = CONFIGS / "world/dmt.yaml", CONFIGS / "world/mixed_sequential.yaml"
    replayed = [
        plan(dmt, f"--data.k={k}").stages[1].num_steps - plan(mixed).stages[1].num_steps
        for k in ("0", "1/16")
    ]
    assert replayed[0] == 0
    assert replayed[1] > 0
