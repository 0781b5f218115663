"""What ends a command with an exit code of its own: errors, and the signals that stop a run."""

import difflib
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import unquote

RESUME_HINT = "The same command"
"""Beginning of the note that a stopped run prints last."""

# What stands before the host. A password may hold characters that should have been encoded, so
# whatever follows a colon and is not a port is one.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#:\[]*:(?!\d*(?:[/?#'\"]|$))\S{,1000}@)")
# A path object writes "https:/ada:secret@host".
_COLLAPSED = re.compile(r"(?<=[a-z]:/)[^\s/?#:@]*:[^\s/@]*@")
# Possessive, so that a long text takes time in proportion to its length.
_QUERY = re.compile(r"[?&;#](?P<name>[^?=&;#\s]*+)=[^&;\s#'\"]++")
_SECRET = re.compile(
    r"token|key|secret|pass|credential|signature|bearer|auth(?!or)|\bsig\b", re.IGNORECASE
)
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]{,30}://")


def has_credentials(address: str, *, needs_scheme: bool = True) -> bool:
    """Say whether an address includes a user name, a password, or a key in its query.

    Args:
        address: Any text.
        needs_scheme: Whether only text with a scheme is an address.

    >>> has_credentials("https://ada:secret@host"), has_credentials("https://host/ada@host")
    (True, False)
    >>> has_credentials("ada:secret@host"), has_credentials("ada:secret@host", needs_scheme=False)
    (False, True)
    >>> has_credentials("https://host/?api_key=secret"), has_credentials("https://host/?page=1")
    (True, False)
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return not needs_scheme and has_credentials(f"any://{address.strip()}")
    in_query = any(_is_secret(found["name"]) for found in _QUERY.finditer(address))
    return in_query or _CREDENTIALS.match(address, scheme.end()) is not None


def hide_credentials(text: str) -> str:
    """Replace user names, passwords and keys of all addresses in a text.

    >>> hide_credentials("no server at https://ada:secret@host.")
    'no server at https://***@host.'
    >>> hide_credentials("https:/ada:secret@host, http://host/?api_key=secret&n=1")
    'https:/***@host, http://host/?api_key=***&n=1'
    """
    text = _COLLAPSED.sub("***@", _CREDENTIALS.sub("***@", text))
    return _QUERY.sub(_hide_secret, text)


def _hide_secret(found: re.Match[str]) -> str:
    return f"{found[0][0]}{found['name']}=***" if _is_secret(found["name"]) else found[0]


def _is_secret(name: str) -> bool:
    return _SECRET.search(unquote(name)) is not None


class RequestError(ValueError):
    """A bad key, value, file or server, known before the base model loads: exit code 2.

    The message is one or two lines that name the key or file, the value seen, and the fix; what an
    address in it holds of credentials is hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(hide_credentials(message))


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
