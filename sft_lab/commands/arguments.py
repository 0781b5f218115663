"""Build argument parsers of commands that read no run config, all in the same form."""

import argparse
import os
import sys
from typing import Any

from sft_lab.commands.main import COMMANDS

TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"


def command_parser(command: str, **settings: Any) -> argparse.ArgumentParser:
    """Return an empty parser for a command, with its one-line help as description."""
    description = COMMANDS[command]
    return argparse.ArgumentParser(
        prog=f"sft-lab {command}",
        description=description[0].upper() + description[1:] + ".",
        allow_abbrev=False,
        **settings,
    )


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    """Add ``--tracking_uri``, the store that a command reads."""
    parser.add_argument("--tracking_uri", default=TRACKING_URI, help="default: %(default)s")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``: one JSON object on stdout instead of text."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def in_color() -> bool:
    """Return whether stdout is a terminal that may be coloured; NO_COLOR turns colour off."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
