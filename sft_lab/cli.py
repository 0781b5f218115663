"""The command line: fit, validate and test through LightningCLI, the lab's own commands beside them."""

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sft_lab.errors import RequestError

_RUN_COMMANDS = ("fit", "validate", "test")


def main(arguments: list[str]) -> int:
    """Run a command of the lab.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the request was wrong, 130 and 143 after signals.
    """
    _be_quiet()
    from sft_lab.checkpoint import Interrupted  # noqa: PLC0415 - imports torch; `--help` need not wait

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        if arguments and arguments[0] in _RUN_COMMANDS:
            from sft_lab.lab_cli import LabCLI  # noqa: PLC0415 - as above

            LabCLI(arguments[0], arguments[1:])
            return 0
        return _own_command(arguments)
    except RequestError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(
            f"\nStopped by {stop}. The same command with --ckpt_path last goes on from here.",
            file=sys.stderr,
        )
        return stop.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at exit
        return 1


def _be_quiet() -> None:
    """Keep other libraries' progress bars and advice out of the one line that a person watches."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _own_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sft_lab")
    parser.parse_args(arguments)
    return 0


_ = (argparse, warnings, Path)
