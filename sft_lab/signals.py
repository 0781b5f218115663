"""Ctrl-C and SIGTERM: raised as ``Interrupted``, and remembered where the exception is lost."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from sft_lab.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Received:
    number: int | None = None


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Raise ``Interrupted``; the handler of both signals while a command runs.

    Python swallows what is raised while a destructor or a C library's callback runs, so the signal
    is remembered: ``check_interrupted`` raises it again.
    """
    _Received.number = number
    raise Interrupted(number)


def check_interrupted() -> None:
    """Raise ``Interrupted`` if a signal has come that has not ended anything yet."""
    if _Received.number is not None:
        raise Interrupted(_Received.number)


def forget_signals() -> None:
    """Start with no signal received."""
    _Received.number = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let both signals raise ``Interrupted`` in the block, and at its end if it was swallowed."""
    handlers: dict[int, Any] = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
        check_interrupted()
    finally:
        forget_signals()
        for number, handler in handlers.items():
            signal.signal(number, handler)
