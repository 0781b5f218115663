"""Run one program in its process: first the solution, then the hand-over, then the test.

Solution and test share a process, so this is no security boundary (``docs/sandbox.md`` lists the
gaps). It prevents cheap ways to pass: the test runs on builtins, modules and classes as they were
before the solution, and a pass is proven by a token that no frame holds.
"""

import _thread
import ast
import builtins
import collections
import contextlib
import importlib
import itertools
import operator
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

PASSED, FAILED, BROKEN = b"+", b"-", b"!"
MAX_REASON_LENGTH = 300
MAX_THREADS = 128  # started by one program

# Imported before the first program, as most of them do, and kept unchanged for their tests.
PRELOADED = (
    *("abc", "array", "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy"),
    *("dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq"),
    *("io", "itertools", "json", "math", "numbers", "operator", "queue", "random", "re"),
    *("statistics", "string", "textwrap", "threading", "time", "typing"),
)

# Audit events (docs.python.org/3/library/audit_events.html) that are refused. Those of the first
# rows could read or change the test's frames; the others, after HumanEval's ``reliability_guard``,
# are accidents that a machine without a system call filter would let through.
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


def play(
    request: dict[str, Any],
    snapshots: "list[Pristine]",
    read_token: Callable[[], bytes],
    write_end: int,
) -> NoReturn:
    """Run the solution, then the test; write the proof that both ended to ``write_end``, and exit.

    Args:
        request: ``solution``, ``test`` and ``entry_point``.
        snapshots: One snapshot, which is removed from the list.
        read_token: Returns the token, once.
        write_end: Descriptor of a pipe, to which the token and ``PASSED``, or ``FAILED`` and the
            reason, are written.
    """
    write, leave, tell, failed = os.write, os._exit, describe, FAILED
    try:
        # All C from here to the program's own code: no frame that it can reach, ours included,
        # holds the token, the snapshot or the steps.
        collections.deque(
            itertools.starmap(
                operator.call, steps(request, snapshots.pop(), read_token, write_end)
            ),
            maxlen=0,
        )
    except BaseException as error:  # SystemExit and KeyboardInterrupt fail as well
        write(write_end, failed + tell(error))
    leave(0)


def steps(
    request: dict[str, Any],
    pristine: "Pristine",
    read_token: Callable[[], bytes],
    write_end: int,
) -> Iterator[tuple[Any, ...]]:
    """Return the calls to make, in order; the last one writes the proof."""
    for name in imports(request["test"]):
        # An import that fails here fails again in the test, where it counts.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    restore = pristine.restorer()
    test_builtins = dict(vars(builtins))
    entry_point = request["entry_point"]
    module = types.ModuleType("solution")
    sys.modules["solution"] = sys.modules["__main__"] = module
    namespace: dict[str, Any] = {}

    def hand_over() -> None:
        restore()
        namespace.update(
            (name, value)
            for name, value in dict.items(module.__dict__)
            if type(name) is str
            and not name.startswith("__")
            and (name == entry_point or name not in test_builtins)
        )
        namespace.update(__name__="test", __builtins__=test_builtins)

    sys.addaudithook(guard())
    return iter(
        (
            (exec, compile(request["solution"], "solution.py", "exec"), module.__dict__),
            (hand_over,),
            (exec, compile(request["test"], "test.py", "exec"), namespace),
            (os.write, write_end, read_token() + PASSED),
        )
    )


def imports(source: str) -> set[str]:
    """Return the modules that a source imports anywhere; none if it does not parse."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # the second for a null byte
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def guard() -> Callable[[str, tuple[Any, ...]], None]:
    """Return the audit hook that refuses events; no name or frame reaches its state."""
    refused = REFUSED_EVENTS

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in refused:
            raise PermissionError(f"the sandbox does not allow {event}")

    return hook


def limit_threads() -> None:
    """Limit every program to ``MAX_THREADS`` threads; Python 3.11 has no audit event for them."""
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


class Pristine:
    """Keep modules, classes and functions as they were before a solution could change them."""

    def __init__(self) -> None:
        self.modules: dict[str, Any] = {}
        self.namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.classes: dict[type, dict[str, Any]] = {}
        self.codes: dict[types.FunctionType, types.CodeType] = {}

    def add(self) -> None:
        """Record the modules imported since the last call, except the worker's own."""
        for name, module in sys.modules.items():
            if name in self.modules or name.partition(".")[0] in ("sft_lab", "__main__"):
                continue
            self.modules[name] = module
            self.namespaces.append((module.__dict__, self._copy(module.__dict__)))
            for value in module.__dict__.values():
                if isinstance(value, type) and value not in self.classes:
                    self.classes[value] = self._copy(vars(value))

    def _copy(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        for value in namespace.values():
            if isinstance(value, types.FunctionType):
                self.codes[value] = value.__code__
        return dict(namespace)

    def restorer(self) -> Callable[[], None]:
        """Return a function that restores everything, whatever a solution has changed."""
        self.add()
        modules, loaded, codes = self.modules, sys.modules, self.codes
        namespaces, classes = self.namespaces, self.classes
        builtins_now, builtins_saved = vars(builtins), dict(vars(builtins))
        module_type, put, take = types.ModuleType, type.__setattr__, type.__delattr__
        nothing = object()

        def changes(now: Any, saved: dict[str, Any]) -> tuple[list[str], list[str]]:
            # By identity: ``==`` can be the solution's.
            changed = [name for name in saved if now.get(name, nothing) is not saved[name]]
            return changed, [name for name in now if name not in saved]

        def restore() -> None:
            builtins_now.clear()  # first, and by methods only: the lines below use builtins
            builtins_now.update(builtins_saved)
            loaded.update(modules)
            for namespace, saved in namespaces:
                changed, added = changes(namespace, saved)
                for name in changed:
                    namespace[name] = saved[name]
                for name in added:
                    if not isinstance(namespace[name], module_type):  # a submodule, imported since
                        del namespace[name]
            for cls, saved in classes.items():
                changed, added = changes(vars(cls), saved)
                for name in changed:
                    put(cls, name, saved[name])
                for name in added:
                    take(cls, name)
            for function, code in codes.items():
                if function.__code__ is not code:
                    function.__code__ = code

        return restore


def describe(error: BaseException) -> bytes:
    """Return type and text of an error; its own methods may fail, too."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = type(error).__name__
    return text[:MAX_REASON_LENGTH].encode(errors="replace")
