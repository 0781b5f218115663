"""Check what the documents say about the repository: paths, snippets, commands."""

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from sft_lab.runs import store

ROOT = Path(__file__).parents[1]

GENERATED = "configuration_reference"
PAGES = [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/*.md") if p.stem != GENERATED)]
COMMANDS = (
    *("fit", "validate", "test", "inspect", "score", "compare", "study", "report", "export"),
    *("represent", "doctor", "world", "chat", "generate", "import"),
)
PATH = re.compile(
    r"(?<![\w/.{<])((?:sft_lab|callbacks|configs|tests|docs|\.ci)/[\w./{},-]*[\w/}])(?![\w<*])"
)

DOTTED = re.compile(r"(?<![\w./-])(sft_lab(?:\.[A-Za-z_]\w*)+)(?![\w*/])")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return a page's code blocks of some languages."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for language, text in fences if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_named_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8")))
    if page.name == "CHANGELOG.md":  # it names what was, too
        return
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == [], f"{page.name} names paths that do not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_hold_known_keys(page: Path) -> None:
    for block in blocks(page, "yaml"):
        values = OmegaConf.to_container(OmegaConf.create(block))
        assert isinstance(values, dict)
        if "axis" in str(values.get("search")):  # a part of an arm
            continue
        name = "study" if {"questions", "report"} & set(values) else "run"
        schema = json.loads((ROOT / f"configs/schema/{name}.json").read_text(encoding="utf-8"))
        faults = [e.message for e in Draft202012Validator(schema).iter_errors(values)]
        assert faults == [], block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse_and_import_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sft_lab"):
                module = importlib.import_module(str(node.module))
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert missing == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists(page: Path) -> None:
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "sft_lab"]:
                assert words[3] in COMMANDS, line
            elif words[:1] == ["sft-lab"]:
                assert words[1] in COMMANDS, line
            elif words[:1] == ["make"]:
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                assert re.search(rf"^{words[1]}:", makefile, re.M), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_name_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    tags = {value for name, value in vars(store).items() if name.endswith("_TAG")}
    for name in sorted(set(DOTTED.findall(page.read_text(encoding="utf-8"))) - tags):
        parts = name.split(".")
        assert any(found(parts, cut) for cut in range(len(parts), 0, -1)), name


def found(parts: list[str], cut: int) -> bool:
    """Say whether the first parts name a module, and the others what it holds."""
    try:
        owner = importlib.import_module(".".join(parts[:cut]))
    except ImportError:
        return False
    for part in parts[cut:]:
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
