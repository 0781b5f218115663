"""Build argument parsers, all alike, for commands that do not read a run config."""

import argparse
import os
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from sft_lab.commands.main import COMMANDS
from sft_lab.config.ranges import (
    NonNegativeFloat,
    PositiveInt,
    PositiveShare,
    Seed,
    range_fault,
)
from sft_lab.errors import RequestError, hide_credentials
from sft_lab.runs.store_uri import default_store

TRACKING_URI = default_store()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message.removeprefix('argument ')}; see {self.prog} --help.")


def command_parser(command: str, **settings: Any) -> argparse.ArgumentParser:
    """Return a parser for a command, with its one-line help as description and no arguments."""
    description = COMMANDS[command]
    return _Parser(
        prog=f"sft-lab {command}",
        description=description[0].upper() + description[1:] + ".",
        allow_abbrev=False,
        **settings,
    )


def number(hint: Any) -> Callable[[str], float]:
    """Return the reader of an option that takes a number of an annotated type, with its range.

    >>> from sft_lab.config.ranges import PositiveInt
    >>> number(PositiveInt)("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be 1 or more, got 0
    """

    def read(text: str) -> float:
        if allowed := range_fault(text, hint):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return typing.get_args(hint)[0](text)

    return read


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    """Add ``--tracking_uri``, the store to read."""
    shown = hide_credentials(TRACKING_URI).replace("%", "%%")
    parser.add_argument("--tracking_uri", default=TRACKING_URI, help=f"default: {shown}")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how answers are generated."""
    for flag, hint, default, text in (
        ("--max_new_tokens", PositiveInt, 512, "longest answer, in tokens"),
        ("--temperature", NonNegativeFloat, 0.0, "0 takes the most probable token"),
        ("--top_p", PositiveShare, 1.0, "draw from the tokens that reach this probability"),
        ("--seed", Seed, 0, "of the draws"),
    ):
        shown = f"{text}; default: {default:g}"
        parser.add_argument(flag, type=number(hint), default=default, metavar="N", help=shown)


def add_margin(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--margin``, the least difference that matters; None by default."""
    parser.add_argument(
        "--margin",
        type=number(PositiveShare),
        metavar="M",
        help=f"least difference that matters, as a part of a score's scale; default: {default}",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which prints one JSON object on stdout instead of text."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, not text")


def in_color() -> bool:
    """Return True if stdout is a terminal and NO_COLOR is not set."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
