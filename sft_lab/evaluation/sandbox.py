"""Run generated programs in limited processes.

The level ``limited`` contains accidents: endless loops, memory, files and output without end, stray
processes. It promises no isolation: a program sees the machine's files and network with the rights
of the run, and one that is written to cheat can. A stronger level is a command that starts the same
worker in a tighter place: one more row of ``WORKER_COMMANDS``.
"""

import json
import queue
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox_worker import remove

Level = Literal["limited"]

# No site-packages and no path of ours, so that programs see the standard library and nothing else.
# Not -I, which ignores the fixed hash seed: without it the order of a set decides some verdicts.
PYTHON = (sys.executable, "-P", "-s", "-S")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
WORKER = str(Path(__file__).with_name("sandbox_worker.py"))
WORKER_COMMANDS: dict[Level, tuple[str, ...]] = {"limited": (*PYTHON, WORKER)}

START_LIMIT_S = 60.0
CLEANUP_LIMIT_S = 30.0  # beyond a program's own time: to end what it left and remove its folder


@dataclass(frozen=True)
class ProgramResult:
    """Whether a program ran to its end without an error, and ``reason``, which is how it ended."""

    passed: bool
    reason: str


def run_programs(
    programs: Sequence[str],
    *,
    timeout_s: float,
    memory_mb: int,
    workers: int,
    level: Level = "limited",
) -> list[ProgramResult]:
    """Run each program in a process of its own and say whether it came to its end.

    Args:
        programs: Python sources; a program passes when its last line has run without an error.
        timeout_s: Wall time of one program, in seconds.
        memory_mb: Address space of one program, in MiB.
        workers: How many programs run at a time.
        level: How they are contained.

    Returns:
        One result per program, in order.

    Raises:
        RequestError: If a limit is out of range or the level is not to be had here.
        RuntimeError: If the sandbox itself fails; a program's failure is a result.

    >>> run_programs(["1 + 1", "1 / 0"], timeout_s=10, memory_mb=256, workers=1)[1]
    ProgramResult(passed=False, reason='ZeroDivisionError: division by zero')
    """
    if timeout_s <= 0 or memory_mb < 64 or workers < 1:
        raise RequestError(
            "The sandbox needs timeout_s above 0, memory_mb from 64 and workers from 1 on, "
            f"got {timeout_s}, {memory_mb} and {workers}."
        )
    if level not in available_levels():
        raise RequestError(
            f"sandbox '{level}' is not to be had here; available: {', '.join(available_levels())}."
        )
    limits = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def run(program: str) -> ProgramResult:
        worker = idle.get()
        try:
            return worker.run(program, limits)
        finally:
            idle.put(worker)

    count = min(workers, len(programs))
    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(_Worker(WORKER_COMMANDS[level])))
        # Entered last, so that every thread is done before the workers are ended.
        threads = stack.enter_context(ThreadPoolExecutor(max(count, 1)))
        return list(threads.map(run, programs))


def available_levels() -> tuple[Level, ...]:
    """Return the levels that this machine can hold, weakest first; ``limited`` needs Linux."""
    return tuple(WORKER_COMMANDS) if sys.platform == "linux" else ()


def bubblewrap_state() -> str:
    """Say whether bubblewrap is at hand for a stronger level; no level uses it yet."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bwrap is not on PATH"
    try:
        command = [bwrap, "--ro-bind", "/", "/", "--unshare-all", "true"]
        trial = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{bwrap} fails: {error}"
    return f"{bwrap} works" if trial.returncode == 0 else f"{bwrap} fails: {trial.stderr.strip()}"


class _Worker:
    """A fork server: a light interpreter that forks once per program, restarted when it is lost."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self._start()

    def _start(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="sft-sandbox-")
        self.process = subprocess.Popen(
            [*self.command, self.scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=self.scratch,
            start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
        )
        if self._reply(START_LIMIT_S) is None:
            self.close()
            raise RuntimeError(f"The sandbox did not start: {' '.join(self.command)}")

    def run(self, program: str, limits: dict[str, float]) -> ProgramResult:
        assert self.process.stdin is not None
        request = json.dumps({"program": program, **limits}).encode() + b"\n"
        with suppress(BrokenPipeError):
            self.process.stdin.write(request)
            self.process.stdin.flush()
        reply = self._reply(limits["timeout_s"] + CLEANUP_LIMIT_S)
        if reply is None:
            self.close()
            self._start()
            return ProgramResult(False, "ended the process that watched it")
        if "sandbox_error" in reply:
            raise RuntimeError(f"The sandbox could not set its limits: {reply['sandbox_error']}")
        return ProgramResult(reply["passed"], reply["reason"])

    def _reply(self, limit_s: float) -> dict[str, Any] | None:
        """Return the worker's next line, or None when it is gone or silent for too long."""
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        if not poller.poll(limit_s * 1000):
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # the end of its input is the worker's sign to leave
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        remove(self.scratch)  # for a worker that was ended before it could

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
