"""Run generated programs where they can do no harm.

``isolated`` gives a program its own namespaces, without network and with only the interpreter's
files, by bubblewrap or util-linux (``isolation.py``). ``limited`` bounds resources without
isolation: a program sees the machine's files with the rights of the run. Both grade alike.
``docs/sandbox.md`` states the guarantees of each.
"""

import functools
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal

from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox.isolation import (
    TOOLS,
    Route,
    find_tool,
    isolated_command,
    limited_command,
)
from sft_lab.evaluation.sandbox.worker import SCRATCH_PREFIX, remove

Level = Literal["isolated", "limited"]
LevelChoice = Literal["isolated", "isolated_or_limited", "limited"]

START_LIMIT_S = 60.0  # for a worker; more than one takes for a program
# Beyond a program's own time: to start its processes, to end them, and to empty its folder.
CLEANUP_LIMIT_S = 60.0
MIN_MEMORY_MB = 64

# With one arena per thread, a few threads would fill a program's address space.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Program:
    """Hold a generated solution and the test that it has to pass.

    The solution runs first, as a module of its own, then the test, which sees the solution's names.
    Names that the test defines win, and so do builtins, except over ``entry_point`` (MBPP asks for
    a function ``sum``).
    """

    solution: str
    test: str
    entry_point: str = ""


_TRIAL = Program("", "import decimal")
_TRYING = threading.Lock()  # whoever asks during a trial waits for it


@dataclass(frozen=True)
class ProgramResult:
    """Hold whether solution and test ran to the end without an error, and the ``reason`` if not."""

    passed: bool
    reason: str


def rank_cores() -> int:
    """Return how many programs this rank may run at a time: its share of its machine's cores.

    More would slow each other down, and the time of a program is limited.
    """
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def run_programs(
    programs: Sequence[Program],
    *,
    timeout_s: float,
    memory_mb: int,
    workers: int,
    level: Level,
) -> list[ProgramResult]:
    """Run each program in a process of its own and return whether it passes its test.

    Args:
        programs: A program passes when the last line of its test has run without an error.
        timeout_s: Wall time of one program, in seconds.
        memory_mb: Address space of one program, the interpreter's 25 MiB included, in MiB.
        workers: Number of programs that run at a time.
        level: Containment; ``resolve_level`` turns a config's choice into a level.

    Returns:
        One result per program, in order.

    Raises:
        RequestError: If a limit is out of range or the level is unavailable on this machine.
        RuntimeError: If the sandbox itself fails; a failing program is a result.

    >>> programs = [Program("def f(): return 1", f"assert f() == {n}, 'unlike'") for n in (1, 2)]
    >>> for result in run_programs(
    ...     programs, timeout_s=10, memory_mb=256, workers=1, level="limited"
    ... ):
    ...     print(result)
    ProgramResult(passed=True, reason='passed')
    ProgramResult(passed=False, reason='AssertionError: unlike')
    """
    if not timeout_s > 0 or memory_mb < MIN_MEMORY_MB or workers < 1:
        raise RequestError(
            f"the sandbox needs timeout_s above 0, memory_mb {MIN_MEMORY_MB} or more and workers 1 "
            f"or more, got {timeout_s}, {memory_mb} and {workers}."
        )
    route = isolation_route() if resolve_level(level) == "isolated" else None
    limits = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def run(program: Program) -> ProgramResult:
        worker = idle.get()
        try:
            return worker.run(program)
        finally:
            idle.put(worker)

    count = min(workers, len(programs))
    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(_Worker(route, limits)))
        # Entered last, so that all threads finish before the workers end.
        threads = stack.enter_context(ThreadPoolExecutor(max(count, 1)))
        return list(threads.map(run, programs))


def resolve_level(choice: LevelChoice) -> Level:
    """Return the level that a config's choice means on this machine.

    Args:
        choice: ``isolated``; ``limited``; or ``isolated_or_limited``, the stronger one available.

    Raises:
        RequestError: If the choice is none of these, or is unavailable on this machine.
    """
    if choice not in ("isolated", "isolated_or_limited", "limited"):
        raise RequestError(
            f"sandbox must be isolated, isolated_or_limited or limited, got '{choice}'."
        )
    if sys.platform != "linux":
        raise RequestError(f"sandbox '{choice}' needs Linux, found {sys.platform}.")
    if choice == "limited":
        return "limited"
    fault = isolation_fault()
    if fault is None:
        return "isolated"
    if choice == "isolated":
        raise RequestError(
            f"sandbox 'isolated' is unavailable on this machine: {fault}. Install bubblewrap 0.7 "
            "or newer, or util-linux 2.36 or newer, and allow user namespaces (docs/sandbox.md), "
            "or set sandbox: limited, which lets generated code access files."
        )
    return "limited"


def isolation_route() -> Route | None:
    """Return the first route that isolates programs on this machine; each is tried once."""
    with _TRYING:
        return next((route for route in TOOLS if _route_fault(route) is None), None)


def start_trial() -> None:
    """Find the route in the background, so that it is known when it is asked for."""
    threading.Thread(target=isolation_route, daemon=True).start()


def isolation_fault() -> str | None:
    """Return the reason why this machine cannot isolate programs, or None if it can."""
    if isolation_route() is not None:
        return None
    return "; ".join(f"{route}: {_route_fault(route)}" for route in TOOLS)


def _route_fault(route: Route) -> str | None:
    tools = {name: find_tool(name) for name in TOOLS[route]}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        return f"no {', '.join(missing)} on PATH"
    return _trial_fault(route, *tools.values())


@functools.cache
def _trial_fault(route: Route, *_tools: str) -> str | None:
    try:
        with _Worker(route, {"timeout_s": 30.0, "memory_mb": 256}) as worker:
            result = worker.run(_TRIAL)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None if result.passed else f"starts, but a trial program failed: {result.reason}"


class _Worker:
    """Run a fork server: a light interpreter that forks for each program, replaced if broken."""

    def __init__(self, route: Route | None, limits: dict[str, float]) -> None:
        self.route = route  # None is limited
        self.limits = limits
        self._start()

    def _start(self) -> None:
        """Start the process; several start at once, because none is waited for before its use."""
        self.scratch: str | None = None  # an isolated worker's scratch folder is in memory
        if self.route is None:
            self.scratch = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
            command = limited_command(self.scratch)
        else:
            command = isolated_command(self.route)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=self.scratch or "/",
            start_new_session=True,  # Ctrl-C reaches the run only, which then ends its workers
        )
        self.is_ready = False
        self._send(self.limits)

    def _wait(self) -> None:
        if self._reply(START_LIMIT_S) is None:
            # Indented lines are hints, which mount prints below its message.
            said = [line for line in self.close().splitlines() if line[:1].strip()]
            raise RuntimeError(f"the sandbox did not start: {said[-1] if said else 'no reply'}")
        self.is_ready = True

    def run(self, program: Program) -> ProgramResult:
        """Run a program; one that breaks its worker is run again by a new one, then fails.

        Raises:
            RuntimeError: If not even a trial program runs.
        """
        fault = ""
        for _ in range(2):
            result = self._try(program)
            if isinstance(result, ProgramResult):
                return result
            fault = result
            self.close()
            self._start()
        trial = self._try(_TRIAL)  # is it the program, or this machine?
        if isinstance(trial, ProgramResult) and trial.passed:
            return ProgramResult(False, f"broke two workers: {fault}")
        raise RuntimeError(f"the sandbox does not work: {trial}")

    def _try(self, program: Program) -> ProgramResult | str:
        """Return a program's result, or what is wrong with the worker."""
        if not self.is_ready:
            self._wait()
        self._send(asdict(program))
        reply = self._reply(self.limits["timeout_s"] + CLEANUP_LIMIT_S)
        if reply is None:
            return "the worker ended, or did not answer"
        if "sandbox_error" in reply:
            return f"the sandbox could not be set up: {reply['sandbox_error']}"
        return ProgramResult(reply["passed"], reply["reason"])

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def _reply(self, limit_s: float) -> dict[str, Any] | None:
        """Return the worker's next line, or None if it has exited or stays silent too long."""
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        if not poller.poll(limit_s * 1000):
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> str:
        """End the worker and return what it wrote to stderr."""
        try:
            # The worker exits at the end of its input.
            said = self.process.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[1]
        if self.scratch is not None:  # for a worker that was killed before it could
            remove(self.scratch)
        return said.decode(errors="replace")

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
