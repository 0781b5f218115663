"""Wrong values of every key and command: exit code 2, one line with key and value, no file."""

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tiny_lab import CONFIGS, Lab

from sft_lab.config.compose import dump

RUN, STUDY = (
    json.loads((CONFIGS / f"schema/{name}.json").read_text(encoding="utf-8"))
    for name in ("run", "study")
)
WRONG: list[Any] = [-1, "zzz", ["zzz"], 0, True, {"zzz": 1}, 2**70, "", 0.5, None]
"""Values of every kind. The schema, made from the signatures, says where they are wrong."""
ENTRIES = {
    "sources": "math",
    "stages": "first",
    "benchmarks": "world_math",
    "mixture": "math",
    "decoding": "world_math",
    "min_retention": "world_math/accuracy",
    "questions": "q",
    "arms": "both",
    "grid": "k",
    "retention": "world_math/accuracy",
}
"""A name to use where a key takes entries of any name."""
JUDGE = {
    "class_path": "sft_lab.evaluation.judge.judge.Judge",
    "init_args": {"model": "m", "base_url": "http://127.0.0.1:1/v1"},
}
REQUIRED: dict[str, Any] = {
    "path": "world://data/world_math.jsonl",
    "max_new_tokens": 4,
    "task": "arc_easy",
    "metrics": ["acc"],
    "judge": JUDGE,
    "model": "m",
    "base_url": "http://127.0.0.1:1/v1",
    "server": {"base_url": "http://127.0.0.1:1/v1"},
}
"""What arguments without a default are set to."""
BESIDE: dict[tuple[str, ...], Any] = {
    ("data", "guard"): {"stage": "second", "min_retention": {"world_math/accuracy": 0.5}},
    ("evaluation", "vllm"): {"base_url": "http://127.0.0.1:1/v1"},
}
FINE = {("trainer.logger", "None"), ("data.stages.first.total", "None"), ("data.k", "None")}
"""Null for a key that may be left out, and for one that is wrong where it is used."""

Path_ = tuple[str, ...]


def keys(
    node: Any, definitions: Any, path: Path_, beside: dict[Path_, Any]
) -> Iterator[tuple[Path_, Any, Any]]:
    """Yield every key below a key of a schema, with its part of it, and what it needs beside."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name == "interpolation":
            return
        node = definitions[name]
    for name, part in node.get("properties", {}).items():
        if name == "init_args" and (owner := node["properties"]["class_path"].get("const")):
            given = {**beside, (*path, "class_path"): owner}
            given |= {(*path, "init_args", key): value for key, value in required(owner).items()}
            yield from keys(part, definitions, (*path, name), given)
        elif name not in ("class_path", "init_args", "dict_kwargs"):
            inner = (*path, name)
            yield inner, part, beside
            given = beside | {k: v for k, v in BESIDE.items() if k == inner}
            yield from keys(part, definitions, inner, given)
    for part in node.get("anyOf", []):
        yield from keys(part, definitions, path, beside)
    entry = node.get("additionalProperties")
    if isinstance(entry, dict):
        inner = (*path, ENTRIES.get(path[-1], "entry"))
        yield inner, entry, beside
        yield from keys(entry, definitions, inner, beside)


def required(owner: str) -> dict[str, Any]:
    module, _, name = owner.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return {
        name: REQUIRED[name]
        for name, argument in found.items()
        if argument.default is argument.empty and name in REQUIRED
    }


def wrong_values(schema: Any) -> Iterator[tuple[str, list[tuple[Any, dict[str, Any]]]]]:
    """Yield every key with its wrong values, and with the config that sets each of them."""
    seen = set()
    for path, part, beside in keys(schema, schema["$defs"], (), {}):
        mark = (path[-1], json.dumps(part, sort_keys=True))
        if mark in seen or path == ("seed_everything",):  # classes share most of their arguments
            continue
        seen.add(mark)
        judge = Draft202012Validator({**part, "$defs": schema["$defs"]})
        key = ".".join(path)
        found = [
            (value, nested({**beside, path: value}))
            for value in WRONG
            if not judge.is_valid(value) and (key, str(value)) not in FINE
        ]
        if found:
            yield key, found


def nested(values: dict[Path_, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for path, value in values.items():
        place = config
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = json.loads(json.dumps(value))
    return config


def files(lab: Lab) -> list[Path]:
    return [path for path in lab.folder.rglob("*") if "__pycache__" not in path.parts]


def check_refused(lab: Lab, key: str, value: Any, *arguments: str) -> str | None:
    """Return how a command that must be refused went wrong, or None."""
    before = files(lab)
    try:
        outcome = lab(*arguments)
    except Exception as fault:
        return f"{key}={value!r}: {type(fault).__name__}: {fault}"
    shown = outcome.err.strip()
    names_key = key in shown or f"{key.rpartition('.')[0]}: {key.rpartition('.')[2]}" in shown
    faults = {
        f"exit {outcome.code}": outcome.code != 2,
        "many lines": len(shown.splitlines()) > 4 or "Traceback" in shown,
        "no key": not names_key,
        "no value": " needs " not in shown and not any(seen in shown for seen in parts(value)),
        "output": outcome.out != "",
        "files": files(lab) != before,
    }
    found = [name for name, is_so in faults.items() if is_so]
    return f"{key}={value!r}: {', '.join(found)}: {shown[:300]}" if found else None


def parts(value: Any) -> list[str]:
    """Return what a message may show of a value: all of it, or its wrong part."""
    shown = ["null", "None"] if value is None else [str(value)]
    return [*shown, *(value if isinstance(value, dict | list) else ())]


def sweep(lab: Lab, schema: Any, *command: str, every: bool) -> list[str]:
    lab.write("wrong.yaml", "")
    faults = []
    for place, (key, wrong) in enumerate(wrong_values(schema)):
        for value, config in wrong if every else [wrong[place % len(wrong)]]:
            lab.write("wrong.yaml", dump(config))
            fault = check_refused(lab, key, value, *command, "--config=wrong.yaml")
            faults += [fault] if fault else []
    return faults


def test_every_key_refuses_a_wrong_value(lab: Lab) -> None:
    assert sweep(lab, RUN, "fit", "--config=tiny.yaml", every=False) == []


def test_every_key_of_a_study_refuses_a_wrong_value(study_lab: Lab) -> None:
    assert sweep(study_lab, STUDY, "study", "--config=study.yaml", "--print", every=False) == []


@pytest.mark.extended
def test_every_key_refuses_every_wrong_value(study_lab: Lab) -> None:
    assert sweep(study_lab, RUN, "fit", "--config=tiny.yaml", every=True) == []
    assert sweep(study_lab, STUDY, "study", "--config=study.yaml", "--print", every=True) == []


COMMANDS = """
fit --config | --config
fit --config=. | --config .
fit --config=gone.yaml | --config gone.yaml
fit --config=tiny.yaml --data.=1 | 'data.'
fit --config=tiny.yaml --data.batch_size | --data.batch_size
fit --config=tiny.yaml --=1 | unknown flag --
fit --config=tiny.yaml -x | -x
fit --config=tiny.yaml extra | extra
fit --config=tiny.yaml --plan --devices=0 | --devices 0
fit --config=tiny.yaml --plan --devices=1.5 | --devices 1.5
fit --config=tiny.yaml --plan --memory=lots | --memory lots
fit --config=tiny.yaml --plan --memory=-1GiB | --memory -1GiB
fit --config=tiny.yaml --devices=2 | --devices --plan
fit --config=tiny.yaml --json | --json --plan
fit --config=tiny.yaml --measure | --measure --plan
fit --config=tiny.yaml --ckpt_path=. | --ckpt_path .
fit --config=tiny.yaml --from= | --from ''
fit --config=tiny.yaml --from=x@ | --from 'x@'
fit --config=tiny.yaml --from=x@first --ckpt_path=last | 'x'
validate --config=tiny.yaml --ckpt_path=last | --ckpt_path last
validate --config=tiny.yaml --from=x | --from
validate --config=tiny.yaml --plan | --plan
test --config=tiny.yaml --ckpt_path=gone | --ckpt_path gone
inspect --config=tiny.yaml -n=-1 | -n -1
inspect --config=tiny.yaml -n=1.5 | -n 1.5
inspect --config=tiny.yaml --stage=third | --stage 'third'
inspect --config=tiny.yaml --stages=x | --stages
score | BENCHMARK
score gsm8k --problems=gone.jsonl --completions=tiny.yaml | --problems gone.jsonl
score gsm8k --problems=tiny.yaml --completions=tiny.yaml | --problems tiny.yaml
score gsm8k --problems=tiny.yaml --completions=tiny.yaml --out=tiny.yaml | --out tiny.yaml
score gsm8k --problems=tiny.yaml --completions=tiny.yaml --model=x | --model
score humaneval --problems=tiny.yaml --completions=tiny.yaml --sandbox=none | sandbox 'none'
score nope --completions=tiny.yaml | 'nope'
score no.Such --completions=tiny.yaml | no.Such
score os.system --completions=tiny.yaml | os.system
compare | RUN
compare x | 'x'
compare x --items=-1 | --items -1
compare x --items=x | --items x
compare x --margin=0 | --margin 0
compare x --margin=nan | --margin nan
compare x --tracking_uri= | --tracking_uri ''
compare x --tracking_uri=ftp://x | --tracking_uri 'ftp://x'
compare x --tracking_uri=sqlite:///tiny.yaml/x.db | --tracking_uri tiny.yaml
compare x --nope | --nope
study | --config
study --config=gone.yaml | --config gone.yaml
study --config=tiny.yaml | 'seed_everything'
study --config=tiny.yaml --print --plan | --print --plan
study --config=tiny.yaml --print --json | --print --json
report --study=x --out=o | --study x
report --study=gone.yaml --out=o | --study gone.yaml
report --study=x | --out
report --results gone.json --out=o | --results gone.json
report --results tiny.yaml --out=o | --results tiny.yaml
report --results x --represent y --out=o | --represent
report --study=x --out=o --margin=2 | --margin 2
represent x | --out
represent x --out=o | 'x'
represent x --out=o --layer=0 | --layer 0
represent x --out=o --num_queries=0 | --num_queries 0
represent x --out=o --num_queries=x | --num_queries x
represent x --out=o --perplexity=inf | --perplexity inf
represent x --out=o --seed=-1 | --seed -1
chat x | 'x'
chat a b c | RUN 3
chat x --max_new_tokens=0 | --max_new_tokens 0
chat x --temperature=nan | --temperature nan
chat x --top_p=2 | --top_p 2
chat x --seed=4294967296 | --seed 4294967296
generate x --prompts=gone --out=o | --prompts gone
generate x --prompts=tiny.yaml --out=o | --prompts tiny.yaml
generate x --prompts=rows.jsonl --out=rows.jsonl | --out rows.jsonl
generate x --prompts=rows.jsonl --out=tiny.yaml/o | --out tiny.yaml
generate x --prompts=rows.jsonl --out=o --batch_size=0 | --batch_size 0
generate x --prompts=empty.jsonl --out=o | --prompts empty.jsonl
generate x --prompts=rows.jsonl --out=o | 'x'
export x | --out
export --out=o | RUN --ckpt_path
export x --ckpt_path=y --out=o | RUN --ckpt_path
export x --out=o | 'x'
export x --out=tiny.yaml | --out tiny.yaml
export x --out=o --what=onnx | --what 'onnx'
export x --out=o --push_to_hub=../x | --push_to_hub '../x'
export --ckpt_path=gone --out=o | --ckpt_path gone
export --ckpt_path=tiny.yaml --out=o | --ckpt_path tiny.yaml
import gone.yml | gone.yml
import tiny.yaml | tiny.yaml
import tiny.yaml --out=tiny.yaml | --out tiny.yaml
ui x | 'x'
ui --port=0 | --port 0
ui --port=70000 | --port 70000
doctor extra | extra
world make | 'make'
world build | --out
world build --out=w --tokens=0 | --tokens 0
world build --out=w --tokens=1.5 | --tokens 1.5
world build --out=w --seed=-1 | --seed -1
world build --out=tiny.yaml/w | --out tiny.yaml/w
nope | 'nope'
"""
"""A command, and after the bar the words of its message, where options go without dashes."""


def test_every_command_refuses_wrong_arguments(lab: Lab) -> None:
    lab.write("rows.jsonl", '{"prompt": "a"}\n')
    lab.write("empty.jsonl", "")
    before, faults = files(lab), []
    for line in COMMANDS.strip().splitlines():
        command, words = line.split(" | ")
        outcome = lab(*command.split())
        shown = outcome.err.strip()
        is_named = all(word.removeprefix("--") in shown for word in words.split())
        if outcome.code != 2 or "\n" in shown or outcome.out or not is_named:
            faults.append(f"{command}: exit {outcome.code}: {shown}")
    assert faults == []
    assert files(lab) == before


@pytest.mark.parametrize(
    ("present", "accelerator", "devices", "words"),
    [
        (1, "auto", 8, ["trainer.devices", "6, 7]", "only has: [0]", "auto"]),
        (2, "gpu", [0, 2], ["trainer.devices", "[0, 2]", "only has: [0, 1]"]),
        (0, "gpu", 1, ["trainer", "gpu"]),
        (0, "tpu", 1, ["trainer", "torch_xla"]),
    ],
)
def test_devices_that_are_not_there_are_refused(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    present: int,
    accelerator: str,
    devices: int | list[int],
    words: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: present > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: present)
    before = files(lab)
    outcome = lab.fit(f"--trainer.accelerator={accelerator}", f"--trainer.devices={devices}")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.out == ""
    assert files(lab) == before
