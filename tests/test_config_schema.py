"""Check shipped configs against the JSON schemas that editors read."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from referencing import Registry, Resource

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SCHEMAS = {path.name: json.loads(path.read_text()) for path in (CONFIGS / "schema").glob("*.json")}
REGISTRY = Registry().with_resources(
    (name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)
RUN = Draft202012Validator(SCHEMAS["run.json"])


def faults(validator: Draft202012Validator, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


@pytest.mark.slow
def test_the_schemas_are_those_of_the_signatures(tmp_path: Path) -> None:
    # In a process of its own: classes that other tests define would be part of them.
    generate = (ROOT / "docs/config_schema.py").read_text(encoding="utf-8")
    script = tmp_path / "docs" / "config_schema.py"
    for folder in (script.parent, tmp_path / "configs"):
        folder.mkdir()
    script.write_text(generate, encoding="utf-8")
    subprocess.run([sys.executable, script], check=True, cwd=ROOT)
    made = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("configs/*/*.json")}
    assert made == SCHEMAS, "the schemas are not those of the signatures: run `make schema`"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_a_shipped_config_names_its_schema_and_validates(path: Path) -> None:
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, f"the first line names no schema: {first}"
    assert rest.startswith("# "), "the second line says what it is for"
    schema = SCHEMAS[(path.parent / named[1]).resolve().relative_to(CONFIGS / "schema").name]
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert faults(Draft202012Validator(schema, registry=REGISTRY), values) == []


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"modle": {}}, "$"),
        ({"model": {"quantisation": "nf4"}}, "$.model"),
        ({"model": {"quantization": "nf5"}}, "$.model"),
        ({"trainer": {"max_steps": 10}}, "$.trainer"),
        ({"evaluation": {"engine": "natve"}}, "$.evaluation"),
        ({"data": {"stages": {"one": {"mixture": {"math": 1}, "learning_rate": 1}}}}, "$.data"),
        ({"corpus": {"sources": {"math": {"path": "a", "filter": "b"}}}}, "$.corpus"),
    ],
)
def test_a_wrong_key_or_value_is_refused(values: dict[str, Any], place: str) -> None:
    found = faults(RUN, values)
    assert len(found) == 1
    assert found[0].startswith(place)


def test_an_unknown_argument_of_a_shipped_benchmark_is_refused() -> None:
    benchmark = {"class_path": "sft_lab.evaluation.benchmarks.gsm8k.GSM8K", "init_args": {"pth": 1}}
    assert faults(RUN, {"evaluation": {"benchmarks": {"gsm8k": benchmark}}})


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"k": "${oc.env:K,1/16}", "batch_size": "${oc.env:BATCH}"}},
        {
            "evaluation": {
                "benchmarks": {"mine": {"class_path": "mine.Mine", "init_args": {"a": 1}}}
            }
        },
        {"evaluation": {"benchmarks": {"gsm8k": {"init_args": {"num_examples": 3}}}}},
        {"trainer": "../trainer.yaml", "evaluation.every_n_steps": 60},
    ],
)
def test_what_composition_allows_is_allowed(values: dict[str, Any]) -> None:
    assert faults(RUN, values) == []
