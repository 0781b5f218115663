"""Ctrl-C, SIGTERM and SIGHUP: raised as ``Interrupted``, and remembered in case that is lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from sft_lab.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP comes when a terminal closes; under nohup it is ignored, and stays so."""


class _Received:
    number: int | None = None


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Raise ``Interrupted``; the handler of all three while a command runs.

    Python swallows what is raised while a destructor or a C library's callback runs, so the signal
    is remembered: ``check_interrupted`` raises it again.
    """
    _Received.number = number
    raise Interrupted(number)


def handle_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of all three signals, and return the earlier ones."""
    return {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }


def check_interrupted() -> None:
    """Raise ``Interrupted`` if a signal has come that has not ended anything yet."""
    if _Received.number is not None:
        raise Interrupted(_Received.number)


def forget_signals() -> None:
    """Start with no signal received."""
    _Received.number = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise ``Interrupted`` in the block, and at its end if it was swallowed."""
    handlers = handle_signals(interrupt)
    try:
        yield
        check_interrupted()
    finally:
        forget_signals()
        for number, handler in handlers.items():
            signal.signal(number, handler)
