import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_lab.errors import RequestError
from sft_lab.study.design import cells
from sft_lab.study.runs import cell_config
from sft_lab.study.study import read_study_config

CONFIGS = Path(__file__).parents[2] / "configs"
STUDY: dict[str, Any] = {
    "name": "s",
    "strategies": "configs/world",
    "seeds": [0, 1],
    "fractions": [1, "1/4"],
    "set": {"evaluation.every_n_steps": None},
    "questions": {
        "q": {
            "title": "?",
            "arms": {
                "dmt": {
                    "config": "dmt.yaml",
                    "grid": {"k": {"values": "${fractions}", "keys": ["data.k"]}},
                },
                "other": {"config": "math_only.yaml", "seeds": [7]},
            },
        }
    },
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(CONFIGS.parent)

    def write(**changes: Any) -> list[str]:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return [f"--config={path}"]

    return write


def test_a_grid_is_every_value_with_every_seed(write: Any) -> None:
    design, _ = read_study_config(write())
    found = cells(design)
    assert [cell.name for cell in found] == [
        "q dmt k=1 seed 0",
        "q dmt k=1 seed 1",
        "q dmt k=1/4 seed 0",
        "q dmt k=1/4 seed 1",
        "q other seed 7",
    ]
    assert found[2].files == ("configs/world/dmt.yaml",)
    assert found[2].overrides == {
        "evaluation.every_n_steps": "null",
        "data.k": "1/4",
        "seed_everything": 0,
    }


def test_one_key_can_be_changed_on_the_command_line(write: Any) -> None:
    design, _ = read_study_config(
        [*write(), "--seeds=[3]", "--questions.q.arms.other.seeds", "[4]"]
    )
    assert {cell.seed for cell in cells(design)} == {3, 4}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--seeds=[]", "seeds is empty"),
        ("--name=a/b", "got 'a/b'"),
        ("--questions={a/b: {title: '?', arms: {x: {config: dmt.yaml}}}}", "got 'a/b'"),
        ("--questions.q.arms={'a$b': {config: dmt.yaml}}", "got 'a$b'"),
        ("--attempts=0", "attempts must be 1 or more, got 0"),
        ("--questions.q.arms.dmt.grid.k.values=[]", "got 0 values and 1 keys"),
        ("--questions.q.arms.dmt.grid.k.values=[1, 1]", "repeats a value"),
        ("--questions.q.arms.dmt.grid.k.values=[0.25, 1/4]", "repeats a value"),
        (
            "--questions.q.arms.dmt.grid.j={values: [1], keys: [data.k]}",
            "grid: two axes set data.k, k and j",
        ),
        ("--questions.q.arms.dmt.grid.k.keys=[dta.k]", "'dta.k' must begin with one of"),
        (
            "--questions.q.arms.dmt.grid={'k #2': {values: [1], keys: [data.k]}}",
            "grid.k #2 names files and anchors; use at most 60",
        ),
        ("--questions.q.arms.dmt.serch={}", "unknown key"),
        ("--questions.q.design=ratios", "ratios"),
        ("--questions.q.arms.dmt.search={axis: j, retention: {a/b: 0.9}}", "got 'j'"),
        ("--questions.q.arms.dmt.search={axis: k, retention: {a/b: 2}}", "(0, 1], got 2"),
        ("--set={dta.k: 1}", "set: 'dta.k' must begin with one of"),
        ("--set=3", "--set must be keys with values, got 3"),
        ("--resources={cpus: 0}", "cpus must be 1 or more"),
        ("--resources={memory_gb: -4}", "memory_gb must be above 0 and finite, or null, got -4"),
        ("--name=..", "got '..'"),
        ("--name=-x", "got '-x'"),
        (f"--name={'n' * 61}", "use at most 60 letters"),
        (f"--questions.q.arms.dmt.grid.k.values={[*range(1001)]}", "k.values has 1,001 entries"),
        (
            "--questions.q.arms.dmt.grid={a: {values: &v [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "
            "keys: [data.k]}, b: {values: *v, keys: [data.b]}, c: {values: *v, keys: [data.c]}, "
            "d: {values: *v, keys: [data.d]}}",
            "questions lay out 40,001 cells, and a study has at most 10,000.",
        ),
        ("--seeds=[-1]", "seeds.0 must be in [0, 4294967295], got -1"),
        ("--questions.q.seeds=[0, 0]", "questions.q.seeds must be distinct"),
        (
            "--questions.q.arms.other.seeds=[-7]",
            "questions.q.arms.other.seeds.0 must be in [0,",
        ),
    ],
)
def test_an_invalid_value_is_refused_and_its_key_named(
    write: Any, override: str, message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        read_study_config([*write(), override])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[1/4, 1/64, 0]", "a search needs ascending values: 0, 1/64, 1/4; got 1/4, 1/64, 0."),
        ("[low, high]", "a search needs numbers, to find the smallest, got low, high."),
        ("[0, 1/0]", "a search needs numbers, to find the smallest, got 0, 1/0."),
    ],
)
def test_a_search_needs_ascending_values(
    write: Any, tmp_path: Path, values: str, message: str
) -> None:
    key = "questions.q.arms.dmt.grid.k.values"
    search = "--questions.q.arms.dmt.search={axis: k, retention: {a/b: 0.9}}"
    with pytest.raises(RequestError, match=re.escape(f"{key}: ") + f".*{re.escape(message)}"):
        read_study_config([*write(), search, f"--{key}={values}"])
    grid = {"k": {"values": yaml.safe_load(values), "keys": ["data.k"]}}
    file = tmp_path / "later.yaml"
    file.write_text(json.dumps({"questions": {"q": {"arms": {"dmt": {"grid": grid}}}}}))
    with pytest.raises(RequestError, match=re.escape(f"later.yaml, line 1: {key}")):
        read_study_config([*write(), f"--config={file}", search])


def test_a_name_unfit_for_a_file_is_refused_with_its_line(write: Any, tmp_path: Path) -> None:
    (config,) = write(questions={"a/b": STUDY["questions"]["q"]})
    with pytest.raises(RequestError) as refused:
        read_study_config([config])
    line = (tmp_path / "study.yaml").read_text().splitlines().index("  a/b:") + 1
    assert str(refused.value) == (
        f"{tmp_path}/study.yaml, line {line}: questions.a/b names files and anchors; use at most "
        "60 letters, digits, _, - and . (neither first), got 'a/b'."
    )


def test_an_unknown_strategy_is_refused_and_its_file_named(write: Any) -> None:
    design, _ = read_study_config([*write(), "--strategies=configs/nowhere"])
    with pytest.raises(RequestError, match=r"configs/nowhere/dmt\.yaml"):
        cells(design)


@pytest.mark.parametrize("file", sorted((CONFIGS / "studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_study_can_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    design, _ = read_study_config([f"--config={file}"])
    assert cells(design)
    assert f"--config configs/studies/{file.name}" in file.read_text()


def test_search_and_guard_of_a_study_have_the_same_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    design, _ = read_study_config(["--config=configs/studies/world_replay.yaml"])
    search = design.questions["replay"].arms["k_finder"].search
    assert search is not None
    guarded = next(cell for cell in cells(design) if cell.arm == "guarded")
    assert cell_config(guarded).plain["data"]["guard"]["min_retention"] == search.retention
    assert set(search.retention.values()) == {0.9}  # "nine tenths" in the file's comment
