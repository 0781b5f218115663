from pathlib import Path

import pytest

from sft_lab.errors import RequestError
from sft_lab.paths import find_config, package_dir, resolve, world_dir


def test_world_names_point_into_the_world(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))
    assert world_dir() == tiny_world
    assert resolve("world://base") == str(tiny_world / "base")
    assert resolve("world://data/math.jsonl") == str(tiny_world / "data" / "math.jsonl")


def test_a_config_whose_name_is_too_long_does_not_exist() -> None:
    with pytest.raises(RequestError, match=r"^--config a+: does not exist"):
        find_config("a" * 5000)


def test_other_names_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFT_LAB_WORLD", raising=False)
    assert world_dir() == package_dir() / "world"
    for name in ("data/math.jsonl", "/abs/x", "openai/gsm8k"):
        assert resolve(name) == name


def test_a_missing_world_name_lists_what_there_is(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))
    with pytest.raises(RequestError, match=r"world://data/maths\.jsonl is not .* world://base, wo"):
        resolve("world://data/maths.jsonl")
    monkeypatch.setenv("SFT_LAB_WORLD", str(tmp_path))
    with pytest.raises(RequestError, match="holds nothing; make one with python -m sft_lab world"):
        resolve("world://base")


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/world/dmt.yaml").is_file()
    (tmp_path / "configs" / "world").mkdir(parents=True)
    (tmp_path / "configs" / "world" / "dmt.yaml").write_text("a: 1")
    assert find_config("configs/world/dmt.yaml").read_text() == "a: 1"  # what is here wins


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--config nope\.yaml: does not exist; give a YAML"):
        find_config("nope.yaml")
    with pytest.raises(RequestError, match="is a folder"):
        find_config(str(tmp_path))
