"""Test what a command imports before its arguments are known to be right, and its short help."""

import atexit
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_lab import CONFIGS, Lab

from sft_lab.commands.imports import quick_imports
from sft_lab.commands.main import COMMANDS
from sft_lab.commands.run_help import short_help
from sft_lab.launch.early import check_early
from sft_lab.launch.keys import flags_of
from sft_lab.launch.parser import run_parser

# Each takes a second or more to import.
HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "scipy", "mlflow", "pandas")
PEFT = ["--model.peft.class_path=peft.LoraConfig", "--model.peft.init_args.use_dorra=true"]
REFUSED = [
    ["trane"],
    ["fit"],
    ["fit", "--config=gone.yaml"],
    ["fit", "--config=tiny.yaml", "--data.batchsize=4"],
    ["fit", "--config=tiny.yaml", "--data.batch_size=0"],
    ["fit", "--config=tiny.yaml", "--data.k=1/0"],
    ["fit", "--config=tiny.yaml", "--data.k=${oc.env:SFT_LAB_NOT_SET}"],
    ["fit", "--config=tiny.yaml", "--modle.base=x"],
    ["fit", "--config=tiny.yaml", "--model.lora=null", "--model.peft.class_path=peft.LoraConfi"],
    ["fit", "--config=tiny.yaml", "--model.lora=null", *PEFT],
    ["fit", "--config=tiny.yaml", "--corpus.sources.math.path=gone.jsonl"],
    ["fit", "--config=tiny.yaml", "--evaluation.benchmarks.world_math.init_args.path=gone.jsonl"],
    ["fit", "--config=tiny.yaml", "--ckpt_path=gone.ckpt"],
    ["validate", "--config=tiny.yaml", "--ckpt_path=gone.ckpt"],
    ["inspect", "--config=tiny.yaml", "--data.batchsize=4"],
    ["export", "--ckpt_path=gone.ckpt", "--out=o"],
    *(["report", "--study=gone.yaml", "--out=o"], ["report", "--study=gone", "--out=o"]),
    ["compare", "x", "--items=-1"],
    ["represent", "x", "--out=o", "--layer=0"],
    *(["compare", "gone"], ["ui", "gone"], ["chat", "gone"], ["represent", "gone", "--out=o"]),
    ["export", "gone", "--out=o"],
    ["fit", "--config=tiny.yaml", "--from=gone@first"],
]
ASKED = [  # of the hub, by libraries that import pandas
    ["fit", "--config=tiny.yaml", "--model.base=nobody/nothing"],
    ["fit", "--config=tiny.yaml", "--corpus.sources.math.path=nobody/nothing"],
]
SCRIPT = """
import json, sys
from sft_lab.commands.main import main
outcomes = []
for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    outcomes.append([arguments, code, loaded])
print("OUTCOMES" + json.dumps(outcomes))
"""


def test_what_is_imported_first_is_never_looked_at_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    frozen: list[bool] = []
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(atexit, "register", at_exit.append)
    with quick_imports():
        assert not gc.isenabled()
    assert frozen == [False]  # nothing is collected between the imports and this
    assert gc.isenabled()
    assert at_exit == [gc.freeze]


def test_help_and_refusals_import_nothing_heavy(lab: Lab) -> None:
    helps = [["--help"], *([command, "--help"] for command in COMMANDS)]
    outcomes, errors = outcomes_of([*helps, *REFUSED, *ASKED], list(HEAVY), lab)
    refused = [[a, 2, []] for a in REFUSED] + [[a, 2, ["pandas"]] for a in ASKED]
    assert outcomes == [[a, 0, []] for a in helps] + refused
    assert "needs the environment variable SFT_LAB_NOT_SET, which is not set" in errors


@pytest.mark.extended
def test_what_records_nothing_imports_neither_mlflow_nor_pandas(lab: Lab) -> None:
    asked = [["inspect", "--config=tiny.yaml"], ["fit", "--plan", "--config=tiny.yaml"]]
    outcomes_of(asked[:1], [], lab)  # what writes tokenised rows imports pandas
    done = [[arguments, 0, []] for arguments in asked]
    assert outcomes_of(asked, ["mlflow", "pandas"], lab)[0] == done


@pytest.mark.parametrize(
    ("changes", "trials"),
    [
        ([], 1),
        (["--evaluation.benchmarks.world_code.init_args.sandbox=limited"], 0),
        (["--print_config"], 0),
    ],
)
def test_the_sandbox_is_tried_while_libraries_are_imported(
    changes: list[str], trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr("sft_lab.launch.early.start_trial", lambda: started.append(True))
    check_early(["--config", str(CONFIGS / "world" / "dmt.yaml"), *changes], "fit")
    assert len(started) == trials


def outcomes_of(commands: list[list[str]], modules: list[str], lab: Lab) -> tuple[list[Any], str]:
    """Return each command's exit code, which modules were loaded after it, and all errors."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SFT_LAB_WORLD": str(lab.world),
    }
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(modules)],
        cwd=lab.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(shown.stdout.rpartition("OUTCOMES")[2]), shown.stderr


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_short_help_names_the_flags_that_the_parser_has(command: str) -> None:
    text = short_help(command)
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    known = {option for action in run_parser(command)._actions for option in action.option_strings}
    flags = {flag.name for flag in flags_of(command)}
    ours = {"--plan", "--measure", "--devices", "--memory", "--json", "--help_all"}  # read earlier
    assert flags - ours <= known
    plain = {o for o in known if o.startswith("--") and "." not in o and not o.endswith("+")}
    groups = {f"--{group}" for group in ("trainer", "model", "checkpoint", "data", "corpus")}
    shtab = {"--print_shtab"}  # where that package is installed
    assert plain - groups - flags - shtab == {"--config", "--seed_everything", "--evaluation"}
    assert all(flag in text for flag in flags)
