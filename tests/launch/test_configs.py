"""Parse and plan every shipped config of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from benchmark_files import add_benchmarks
from conftest import chat, write_jsonl
from hub_cache import HubCache
from tiny_lab import CONFIGS

from sft_lab.launch.build import plan_data
from sft_lab.launch.parser import parse
from sft_lab.training.schedule import Schedule

pytestmark = pytest.mark.slow

RUNS = sorted(
    path for path in CONFIGS.glob("*/*.yaml") if "data" in yaml.safe_load(path.read_text())
)
STRATEGIES = {
    "multi_task": ["all"],
    "sequential": ["code", "math", "general"],
    "mixed_sequential": ["specialize", "generalize"],
    "dmt": ["specialize", "generalize"],
    "guarded": ["specialize", "generalize"],
    "math_only": ["math"],
    "code_only": ["code"],
    "general_only": ["general"],
}

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
    }
    assert {path.stem for path in named("world")} == set(STRATEGIES)


@pytest.mark.parametrize("path", named("world"), ids=lambda path: path.stem)
def test_a_world_config_plans_its_stages(plan: Plan, path: Path) -> None:
    assert stage_names(plan(path)) == STRATEGIES[path.stem]


@pytest.mark.parametrize(
    "path",
    [*named("llama2_7b"), *named("paper_exact"), *named("qwen2.5_0.5b")],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_config_with_hub_names_plans_over_local_files(
    plan: Plan,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub_cache: HubCache,
) -> None:
    monkeypatch.setenv("SFT_LAB_BASE", "world://base")
    add_benchmarks(hub_cache)
    for source in ("math", "code", "general"):
        rows = [chat(f"{source} {n}?", str(n)) for n in range(300)]
        write_jsonl(tmp_path / f"{source}.jsonl", rows)
        monkeypatch.setenv(f"SFT_LAB_{source.upper()}", str(tmp_path / f"{source}.jsonl"))
    # The isolation that the configs ask for is unavailable on some machines.
    schedule = plan(path, f"{SANDBOX}=isolated_or_limited")
    assert stage_names(schedule) == STRATEGIES[path.stem]
    assert all(stage.stage.epochs == 3 for stage in schedule.stages)


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


@pytest.mark.parametrize("path", named("real_files"), ids=lambda path: path.stem)
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
