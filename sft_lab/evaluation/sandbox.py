"""Run generated programs where they can do no harm.

``isolated`` is bubblewrap: namespaces of its own, no network, no files but the interpreter's.
``limited`` bounds what a program uses and promises no isolation: it sees the machine's files with
the rights of the run. Both grade alike. ``docs/sandbox.md`` says what each one promises.
"""

import functools
import json
import os
import queue
import select
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox_worker import remove

Level = Literal["isolated", "limited"]
LevelChoice = Literal["isolated", "isolated_or_limited", "limited"]

START_LIMIT_S = 60.0
CLEANUP_LIMIT_S = 30.0  # beyond a program's own time: to end what it left and empty its folder
SCRATCH_MB = 64
MIN_MEMORY_MB = 64

# Neither site nor any path of the run's, which would be the project's. Not -I, which ignores the
# fixed hash seed: without it the order of a set decides some verdicts.
EXECUTABLE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
PYTHON = (EXECUTABLE, "-P", "-s", "-S", "-c")
START = (
    "import json, sys; root, *arguments = json.loads(sys.argv[1]); sys.path.insert(0, root); "
    "from sft_lab.evaluation.sandbox_worker import main; main(*arguments)"
)
# With an arena a thread, a few threads would fill a program's address space.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
ROOT = Path(__file__).parents[2]
WORKER_FILES = [
    *("sft_lab/__init__.py", "sft_lab/evaluation/__init__.py"),
    *(f"sft_lab/evaluation/sandbox_{part}.py" for part in ("filter", "program", "worker")),
]

# What the interpreter may need besides its own folders.
SYSTEM_PATHS = (
    *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
    *("/etc/ld.so.cache", "/usr/share/zoneinfo"),
)
DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")


@dataclass(frozen=True)
class Program:
    """A generated solution and the test that it has to pass.

    The solution runs first, as a module of its own, then the test, which sees the solution's names.
    Names that the test defines win, and so do builtins; only ``entry_point`` is the solution's even
    where a builtin bears it (MBPP asks for a function ``sum``).
    """

    solution: str
    test: str
    entry_point: str = ""


@dataclass(frozen=True)
class ProgramResult:
    """Whether solution and test ran to the end without an error, and ``reason``: how they ended."""

    passed: bool
    reason: str


def run_programs(
    programs: Sequence[Program],
    *,
    timeout_s: float,
    memory_mb: int,
    workers: int,
    level: Level,
) -> list[ProgramResult]:
    """Run each program in a process of its own and say whether it passes its test.

    Args:
        programs: A program passes when the last line of its test has run without an error.
        timeout_s: Wall time of one program, in seconds.
        memory_mb: Address space of one program, the interpreter's 25 MiB included, in MiB.
        workers: How many programs run at a time.
        level: How they are contained; ``resolve_level`` turns a config's choice into one.

    Returns:
        One result per program, in order.

    Raises:
        RequestError: If a limit is out of range or the level is not to be had here.
        RuntimeError: If the sandbox itself fails; a program's failure is a result.

    >>> programs = [Program("def f(): return 1", f"assert f() == {n}, 'unlike'") for n in (1, 2)]
    >>> for result in run_programs(
    ...     programs, timeout_s=10, memory_mb=256, workers=1, level="limited"
    ... ):
    ...     print(result)
    ProgramResult(passed=True, reason='passed')
    ProgramResult(passed=False, reason='AssertionError: unlike')
    """
    if timeout_s <= 0 or memory_mb < MIN_MEMORY_MB or workers < 1:
        raise RequestError(
            f"The sandbox needs timeout_s above 0, memory_mb from {MIN_MEMORY_MB} and workers "
            f"from 1 on, got {timeout_s}, {memory_mb} and {workers}."
        )
    resolve_level(level)
    limits = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def run(program: Program) -> ProgramResult:
        worker = idle.get()
        try:
            return worker.run(program, limits)
        finally:
            idle.put(worker)

    count = min(workers, len(programs))
    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(_Worker(level)))
        # Entered last, so that every thread is done before the workers are ended.
        threads = stack.enter_context(ThreadPoolExecutor(max(count, 1)))
        return list(threads.map(run, programs))


def resolve_level(choice: LevelChoice) -> Level:
    """Return the level that a config's choice means on this machine.

    Args:
        choice: ``isolated``; ``limited``; or ``isolated_or_limited``, the stronger one to be had.

    Raises:
        RequestError: If the choice is none of these, or is not to be had here.
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
            f"sandbox 'isolated' is not to be had here: {fault}. Install bubblewrap 0.7 or newer, "
            "or set sandbox: limited, which does not keep generated code from files."
        )
    return "limited"


def isolation_fault() -> str | None:
    """Return what keeps this machine from isolating programs, None when it can; tried once."""
    bwrap = shutil.which("bwrap")
    return "bwrap is not on PATH" if bwrap is None else _bubblewrap_fault(bwrap)


@functools.cache
def _bubblewrap_fault(bwrap: str) -> str | None:
    limits = {"timeout_s": 30.0, "memory_mb": 256}
    try:
        with _Worker("isolated") as worker:
            result = worker.run(Program("", "import decimal"), limits)
    except (OSError, RuntimeError) as error:
        return f"{bwrap} fails: {error}"
    return None if result.passed else f"{bwrap} runs, but a trial program: {result.reason}"


def worker_command(scratch: str | None) -> list[str]:
    """Return the command line of a limited worker, or of an isolated one, without a ``scratch``."""
    folders = [os.path.realpath(folder) for folder in _site_packages()]
    if scratch is not None:
        return [*PYTHON, START, json.dumps([str(ROOT), scratch, folders, False])]
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    return [
        bwrap,
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        # As process 1, the worker cannot be signalled by what it starts, and takes it along.
        *("--as-pid-1", "--new-session", "--die-with-parent"),
        *_binds(folders),
        *("--size", str(SCRATCH_MB << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/"),
        *(*PYTHON, START, json.dumps(["/worker", "/tmp", folders, True])),
    ]


def _site_packages() -> list[str]:
    """Return the folders of installed packages that this interpreter uses itself."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [folder for folder in [*user, *site.getsitepackages()] if os.path.isdir(folder)]


def _binds(site_packages: Sequence[str]) -> list[str]:
    """Return bwrap's arguments for what a worker can read; never a parent of what it needs.

    A virtual environment often lies in the project, and an interpreter in the home folder.
    """
    base = os.path.realpath(sys.base_prefix)
    own = [EXECUTABLE, os.path.realpath(sysconfig.get_path("stdlib"))]
    own += [os.path.join(base, name) for name in ("lib", "lib64")]
    arguments = []
    for path in (*SYSTEM_PATHS, *own, *site_packages):
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    for name in WORKER_FILES:
        arguments += ["--ro-bind", str(ROOT / name), f"/worker/{name}"]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    return arguments


class _Worker:
    """A fork server: a light interpreter that forks once per program, restarted when it is lost."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self._start()

    def _start(self) -> None:
        # An isolated worker has its scratch folder in memory.
        limited = self.level == "limited"
        self.scratch = tempfile.mkdtemp(prefix="sft-sandbox-") if limited else None
        self.process = subprocess.Popen(
            worker_command(self.scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=self.scratch or "/",
            start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
        )
        if self._reply(START_LIMIT_S) is None:
            said = self.close().strip().splitlines()
            raise RuntimeError(f"the sandbox did not start: {said[-1] if said else 'no reply'}")

    def run(self, program: Program, limits: dict[str, float]) -> ProgramResult:
        assert self.process.stdin is not None
        request = json.dumps({**asdict(program), **limits}).encode() + b"\n"
        with suppress(BrokenPipeError):
            self.process.stdin.write(request)
            self.process.stdin.flush()
        reply = self._reply(limits["timeout_s"] + CLEANUP_LIMIT_S)
        if reply is None:
            self.close()
            self._start()
            return ProgramResult(False, "ended the process that watched it")
        if "sandbox_error" in reply:
            raise RuntimeError(f"the sandbox could not set its limits: {reply['sandbox_error']}")
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

    def close(self) -> str:
        """End the worker and return what it wrote to stderr."""
        try:
            # The end of its input is the worker's sign to leave.
            said = self.process.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            said = self.process.communicate()[1]
        if self.scratch is not None:  # for a worker that was ended before it could
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
