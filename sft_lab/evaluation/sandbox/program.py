"""Run one program in two processes: one runs the solution, the other its test.

They share no memory, and only the test's process can report a pass. A solution sees the arguments
of its calls, and nothing else of the test.
"""

import _thread
import builtins
import itertools
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from sft_lab.evaluation.sandbox.channel import ConnectionLost, Garbled, Peer, TestPeer, text_of

# As in ``channel``: the functions below keep these, whatever a solution does to its process.
globals()["__builtins__"] = dict(vars(builtins))

# First bytes of what the test's process reports.
READ, PASSED, FAILED, ENDED, BROKEN = b".", b"+", b"-", b"?", b"!"
MAX_REASON_LENGTH = 300
MAX_THREADS = 128  # started by one process

# Imported before the first program, as most of them do.
PRELOADED = (
    *("abc", "array", "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy"),
    *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq"),
    *("io", "itertools", "json", "math", "numbers", "operator", "queue", "random", "re"),
    *("statistics", "string", "textwrap", "threading", "time", "typing"),
)

# Audit events (docs.python.org/3/library/audit_events.html) that are refused. Those of the first
# rows reach into the interpreter itself; the others, after HumanEval's ``reliability_guard``, are
# accidents that a machine without a system call filter would let through.
REFUSED_EVENTS = frozenset(
    [
        *("gc.get_objects", "gc.get_referents", "gc.get_referrers"),
        *("sys._current_exceptions", "sys._current_frames", "sys.addaudithook"),
        *("sys.monitoring.register_callback", "sys.setprofile", "sys.settrace"),
        *("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn"),
        *("os.system", "pty.spawn", "subprocess.Popen"),
        *("os.remove", "os.rename", "os.rmdir", "os.truncate"),
    ]
)

_leave = os._exit  # without at-exit handlers
HELLO, CANNOT = b"+", b"!"  # first byte that a solution's process sends: it can start, or cannot


def run_solution(receive_end: int, send_end: int, confine: Callable[[], None]) -> NoReturn:
    """Load the solution that the test's process sends, and answer its calls, to the end.

    Args:
        receive_end: Descriptor of the calls.
        send_end: Descriptor of the answers.
        confine: Drops the process's rights.
    """
    try:
        confine()
    except BaseException as error:
        os.write(send_end, CANNOT + describe(error))
        _leave(1)
    os.write(send_end, HELLO)
    sys.addaudithook(guard())
    module = types.ModuleType("solution")
    sys.modules["solution"] = sys.modules["__main__"] = module

    def load(source: str) -> None:
        exec(compile(source, "solution.py", "exec"), module.__dict__)

    def look_up(names: list[str]) -> dict[str, Any]:
        found = {}
        for name in names:
            try:
                peer.encode(module.__dict__[name])
                found[name] = module.__dict__[name]
            except (KeyError, AttributeError, TypeError):
                continue
        return found

    peer = Peer(receive_end, send_end, offered=(load, look_up))
    try:
        peer.serve()
    finally:
        _leave(0)


def run_test(
    request: dict[str, str],
    receive_end: int,
    send_end: int,
    verdict_end: int,
    confine: Callable[[], None],
) -> NoReturn:
    """Send the solution to its process, run the test, report the verdict, and exit.

    Args:
        request: ``solution``, ``test`` and ``entry_point``.
        receive_end: Descriptor of the solution's answers.
        send_end: Descriptor of the calls.
        verdict_end: Descriptor of the verdict, to which nothing but this function writes.
        confine: Drops the process's rights.
    """
    try:
        confine()
        sys.addaudithook(guard())
        hello = os.read(receive_end, MAX_REASON_LENGTH)
        if hello != HELLO:  # no solution runs yet, so this can be believed
            raise RuntimeError(hello[1:].decode(errors="replace"))
    except BaseException as error:
        verdict = BROKEN + describe(error)
    else:
        verdict = _verdict(request, TestPeer(receive_end, send_end))
    os.write(verdict_end, verdict)
    _leave(0)


def _verdict(request: dict[str, str], peer: TestPeer) -> bytes:
    load, look_up = peer.decode(["mine", 0]), peer.decode(["mine", 1])
    try:
        load(request["solution"])
        code = compile(request["test"], "test.py", "exec")
        wanted = {name for name in names(code) if not name.startswith("__")}
        entry_point = request["entry_point"]
        # The test's own names come first, then builtins, then the solution's.
        asked = [
            name for name in sorted(wanted) if name == entry_point or not hasattr(builtins, name)
        ]
        found = look_up(asked)
        namespace = {name: found[name] for name in asked if name in found}
        exec(code, {**namespace, "__name__": "test"})
        look_up([])  # a solution that has ended fails, even if the test caught that
    except Garbled:
        return FAILED + b"sent no valid answer before its last line"
    except ConnectionLost:
        return ENDED
    except BaseException as error:  # SystemExit and KeyboardInterrupt fail as well
        return FAILED + describe(error)
    return PASSED


def names(code: types.CodeType) -> set[str]:
    """Return the names that code uses, of attributes too."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(names, inner))


def guard() -> Callable[[str, tuple[Any, ...]], None]:
    """Return the audit hook that refuses events; no name or frame reaches its state."""
    refused = REFUSED_EVENTS

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in refused:
            raise PermissionError(f"the sandbox does not allow {event}")

    return hook


def limit_threads() -> None:
    """Limit every process to ``MAX_THREADS`` threads; Python 3.11 has no audit event for them."""
    started = itertools.count()

    def limited(start: Callable[..., Any]) -> Callable[..., Any]:
        def start_limited(*args: Any, **kwargs: Any) -> Any:
            if next(started) >= MAX_THREADS:
                raise PermissionError(f"the sandbox allows {MAX_THREADS} threads")
            return start(*args, **kwargs)

        return start_limited

    for module, prefix in ((_thread, ""), (threading, "_")):
        for name in ("start_new", "start_new_thread", "start_joinable_thread"):
            if start := getattr(module, prefix + name, None):
                setattr(module, prefix + name, limited(start))


def describe(error: BaseException) -> bytes:
    """Return type and text of an error, cut to ``MAX_REASON_LENGTH``."""
    text = f"{type(error).__name__}: {text_of(error)}"
    return text[:MAX_REASON_LENGTH].encode(errors="replace")
