"""Errors that end a command with an exit code of their own: a wrong request, a signal."""

import difflib
import signal
from collections.abc import Iterable

RESUME_HINT = "The same command"
"""Beginning of the note that a stopped run prints last."""


class RequestError(ValueError):
    """A bad key, value, file or server, known before the base model loads: exit code 2.

    The message is one or two lines that name the key or file, the value seen, and the fix.
    """


class BusyError(RequestError):
    """Another process holds what is asked for; the same request may work later: exit code 75."""


class RunError(RuntimeError):
    """A run that cannot continue, for a reason known in one line: exit code 1.

    Args:
        message: The reason, and what to do.
        can_resume: Whether the run could continue once that is done.
    """

    def __init__(self, message: str, *, can_resume: bool = True) -> None:
        super().__init__(message)
        self.can_resume = can_resume


class Interrupted(BaseException):
    """A signal, raised once the run can be resumed; a BaseException as KeyboardInterrupt is.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for a misspelt name, or nothing.

    >>> nearest("maths", ["math", "code"])
    " (did you mean 'math'?)"
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
