"""Run the command line, ``python -m sft_lab`` or ``sft-lab``; commands are imported lazily."""

import logging
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from sft_lab.errors import (
    BusyError,
    Interrupted,
    RequestError,
    forget_signals,
    handle_signals,
    hide_credentials,
    interrupt,
    nearest,
)
from sft_lab.runs.accidents import explain
from sft_lab.terminal import VisibleFormatter, visible

COMMANDS = {
    "fit": "train through the stages of a strategy and measure abilities along the way",
    "validate": "score a checkpoint (--ckpt_path), or the bare base, on the selection items",
    "test": "score a checkpoint (--ckpt_path), or the bare base, on the report items",
    "inspect": "show what a config trains on, down to the sample; loads no model",
    "score": "grade completions of any model from a file; loads no model",
    "compare": "compare abilities of runs at every stage boundary, with paired tests",
    "study": "run a grid of runs that answers a question, on Ray; resumable",
    "report": "write a study as a page with figures and findings",
    "represent": "draw hidden states of a run's sources, before and after training",
    "chat": "talk to a stage of a run, or to two side by side with the same words",
    "generate": "answer the rows of a file with a stage of a run",
    "export": "write a stage as a PEFT adapter, a merged model or GGUF, with a card",
    "import": "turn a config of axolotl or LLaMA-Factory into one of a run",
    "ui": "open the runs in MLflow, and print a run's own address",
    "doctor": "show what this machine has",
    "world": "build the embedded world from scratch",
}
_MODULES = {"import": "import_config"}  # a keyword names no module
_HELP = """usage: sft-lab COMMAND [--help] ...

What does each source of fine-tuning data do to each ability of a model?

commands:
{commands}

Runs take a config: sft-lab fit --config configs/world/dmt.yaml
  fit --plan              estimate what the run costs and train nothing
  fit --ckpt_path last    resume the newest unfinished run of this config
  fit --from RUN@STAGE    start a new run from the end of another run's stage"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command of the lab.

    Args:
        arguments: The command and its arguments; default: ``sys.argv[1:]``.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request was wrong, 75 another process holds
        the run or study, 128 plus the number after a signal.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _quiet_libraries()

    forget_signals()
    handle_signals(interrupt)
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command in ("-h", "--help"):
            print(help_text())
            return 0
        if command not in COMMANDS:
            _refuse(command)
        return int(import_module(f"sft_lab.commands.{_MODULES.get(command, command)}").main(rest))
    except RequestError as fault:
        # Started by torchrun, each rank comes here; the first prints what all raise.
        if os.environ.get("RANK", "0") == "0" or not getattr(fault, "is_shared", False):
            print(f"error: {visible(str(fault))}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(fault, BusyError) else 2
    except Interrupted as stop:
        print(" ".join([f"\nStopped by {stop}.", *_notes(stop)]), file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 1
    except Exception as fault:
        if (line := explain(fault)) is None:
            raise
        line = hide_credentials(" ".join([f"error: {line}", *_notes(fault)]))
        print(visible(line), file=sys.stderr)
        return 1


def help_text() -> str:
    """Return the help text of the command line."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return _HELP.format(commands="\n".join(lines))


def _refuse(command: str) -> NoReturn:
    if not command:
        raise RequestError(f"sft-lab needs a command: {', '.join(COMMANDS)}; see sft-lab --help.")
    raise RequestError(
        f"unknown command {command!r}{nearest(command, COMMANDS)}; the commands are "
        f"{', '.join(COMMANDS)}. See sft-lab --help."
    )


def _notes(fault: BaseException) -> list[str]:
    """Return what was added on the way up, as how to resume the run."""
    return list(getattr(fault, "__notes__", []))


def _quiet_libraries() -> None:
    """Silence libraries' progress bars and advice, and escape text that stdout cannot encode."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if logging.lastResort is not None:  # it prints the package's warnings
        logging.lastResort.setFormatter(VisibleFormatter())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # rows may contain what an ASCII terminal cannot show
            stream.reconfigure(errors="backslashreplace")
