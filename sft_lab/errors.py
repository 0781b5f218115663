"""What ends a command early, with an exit code of its own: a wrong request, a signal."""

import difflib
import signal
from collections.abc import Iterable


class RequestError(ValueError):
    """A bad key, value, file or server, known before the base model loads: exit code 2.

    The message is one or two lines that name the key or file, the value seen, and the fix.
    """


class BusyError(RequestError):
    """What is asked for goes on in another process; the same request may do later: exit code 75."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, once the run can be gone on with; like KeyboardInterrupt no Exception.

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
