"""Parse and plan every shipped config of a run."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_files import TULU3, add_sources
from conftest import CHAT_TEMPLATE, byte_tokenizer, write_jsonl
from hub_cache import HubCache
from judge_server import Server
from tiny_lab import CONFIGS, Lab
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
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
KINDS: dict[str, Any] = {
    "llama2_7b": LlamaConfig,
    "paper_exact": LlamaConfig,
    "qwen2.5_0.5b": Qwen2Config,
    "qwen3_0.6b": Qwen3Config,
    "qwen2.5_1.5b": Qwen2Config,
    "llama3.2_1b": LlamaConfig,
    "gemma3_1b": Gemma3TextConfig,
    "smollm3_3b": SmolLM3Config,
    "llama3_8b": LlamaConfig,
}
"""The architecture of the base that a folder's configs name."""
OF_THE_HUB = [path for path in RUNS if path.parent.name in KINDS]
PLANNED = ("llama2_7b", "paper_exact", "qwen2.5_0.5b", "gemma3_1b")
"""Folders whose templates the world's tokenizer can render."""
TRAINED = [CONFIGS / "qwen3_0.6b/dmt.yaml", CONFIGS / "gemma3_1b/tulu3.yaml"]
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
TENSORBOARD = """\
    - class_path: lightning.pytorch.loggers.TensorBoardLogger
      init_args: {save_dir: board, name: "", version: ""}
"""
HAS_TENSORBOARD = any(map(find_spec, ("tensorboard", "tensorboardX")))
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
    [path for path in OF_THE_HUB if path.parent.name in PLANNED],
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
    add_paths(tmp_path)
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
    "path",
    [
        # Of the others, the planner and the parser have seen what differs.
        path if path in TRAINED else pytest.param(path, marks=pytest.mark.extended)
        for path in OF_THE_HUB
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_real_model_s_config_trains_by_hub_names_alone(
    lab: Lab, hub_cache: HubCache, server: Server, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    config, folder = parse([f"--config={path}"]).plain, path.parent.name
    tokenizer = byte_tokenizer(bos_token="<system>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    special = {f"{name}_token_id": 4 for name in ("bos", "eos", "pad")}
    model = AutoModelForCausalLM.from_config(
        KINDS[folder](
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            num_key_value_heads=2,
            **sizes,
            **special,
        )
    )
    for part in (tokenizer, model):
        part.save_pretrained(lab.folder / "base")
    hub_cache.add_model(config["model"]["base"], lab.folder / "base")
    add_sources(hub_cache)
    add_paths(lab.folder)
    monkeypatch.setenv("SFT_LAB_JUDGE", "judge")
    monkeypatch.setenv("SFT_LAB_JUDGE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    lab.write("loggers.yaml", LOGGERS + TENSORBOARD * HAS_TENSORBOARD)
    stages = list(config["data"]["stages"])
    benchmarks = config["evaluation"]["benchmarks"]
    arguments = (
        f"--config={path}",
        "--config=loggers.yaml",
        *(f"--data.stages.{name}.max_steps={3 - min(len(stages), 2)}" for name in stages),
        *("--data.batch_size=4", "--data.micro_batch_size=2", "--evaluation.budget=null"),
        *(f"--evaluation.benchmarks.{name}.init_args.max_new_tokens=2" for name in benchmarks),
        *(
            f"--evaluation.benchmarks.{name}.init_args.num_examples=1"
            for name in benchmarks
            if name == "mt_bench"
        ),
        f"{SANDBOX}=isolated_or_limited",
    )
    planned = lab("fit", "--plan", *arguments)
    assert planned.code == 0, planned.err
    assert "at most (training and evaluation take turns)" in planned.out
    outcome = lab("fit", *arguments)
    assert outcome.code == 0, outcome.err
    assert len(lab.json("record.json")["commits"]) >= 6 - 2 * (folder == "paper_exact")
    assert max(lab.points("gsm8k/flexible")) == max(2, len(stages))
    # Loggers of Lightning's beside the record get the run's config and the same metrics.
    given = yaml.safe_load((lab.folder / "logs/hparams.yaml").read_text())
    assert given["model"] == lab.store.config(lab.run.info.run_id)["model"]
    assert given["run_id"] == lab.run.info.run_id
    [header, *_] = (lab.folder / "logs/metrics.csv").read_text().splitlines()
    assert {"gsm8k/flexible", "train_loss/all", "lr", "step"} <= set(header.split(","))
    if HAS_TENSORBOARD:
        [events] = (lab.folder / "board").glob("events.out.tfevents.*")
        assert all(tag in events.read_bytes() for tag in (b"gsm8k/flexible", b"train_loss/all"))


def add_paths(folder: Path) -> None:
    """Write the rejection-sampled rows of the paper's own protocol, which are not on the hub."""
    rows = [{"query": f"{n}?", "response": f"#### {n}"} for n in range(300)]
    write_jsonl(folder / "u33b.jsonl", rows)


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
