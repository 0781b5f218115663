"""Serve the sandbox's requests by forking; ``main`` runs in a light interpreter, once per worker.

Reads the limits, ``{"timeout_s", "memory_mb"}``, then one request per line, ``{"solution", "test",
"entry_point"}``, and writes one line for each: ``{"passed", "reason"}``, or ``{"sandbox_error"}``
if the sandbox is at fault. For every request it forks two processes, and only the test's reads the
line, so that no solution finds a test in the memory that it inherits. Of sft_lab it imports only
its neighbours, so that it starts fast and every fork is small. When its input ends, it ends all
that it runs and exits.
"""

import contextlib
import importlib
import itertools
import json
import math
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from sft_lab.evaluation.sandbox.program import (
    BROKEN,
    ENDED,
    FAILED,
    MAX_THREADS,
    PASSED,
    PRELOADED,
    READ,
    limit_threads,
    run_solution,
    run_test,
)
from sft_lab.evaluation.sandbox.seccomp import (
    PR_SET_PDEATHSIG,
    drop_capabilities,
    install_filter,
    make_read_only,
    prctl,
)

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # linux/prctl.h
START_LIMIT_S = 30.0  # to fork, and to read a request; beyond a program's own time
SCRATCH_PREFIX = "sft-sandbox-"
SCRATCH = "/scratch"  # of an isolated worker; not /tmp, under which an interpreter may lie
MAX_FILE_MB = 16
MAX_OPEN_FILES = 64
MAX_PENDING_SIGNALS = 1024  # timers included; the kernel counts them for each user
# One thread per program, and the same clock everywhere.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TZ": "UTC"}


def main(scratch: str, site_packages: Sequence[str], isolated: bool) -> None:
    """Serve requests until the input ends.

    Args:
        scratch: Folder for files that programs write, emptied after each.
        site_packages: Folders of installed packages that programs may import from.
        isolated: Whether a sandbox surrounds this process; a system call filter is then required.

    Raises:
        RuntimeError: If the sandbox is not set up correctly; nothing has been removed then.
    """
    if isolated and os.getpid() != 1:
        raise RuntimeError("an isolated worker is process 1 of its sandbox")
    if os.listdir(scratch):  # after a failed mount, say: these would be somebody's files
        raise RuntimeError(f"the scratch folder {scratch} is not empty")
    if isolated:
        seal()
    # A process whose parent exits becomes our child, so that we can end it.
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_DUMPABLE, 0)  # programs of the same user cannot access our memory or pipes
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sft_lab"]:
        del sys.modules[name]
    sys.path[:] = [*sys.path[1:], *site_packages]  # the first one holds this file
    for name in PRELOADED:
        importlib.import_module(name)
    limit_threads()
    limits = json.loads(read_line())
    reply({"ready": True})
    with contextlib.suppress(EOFError):
        for number in itertools.count():
            wait(0)
            folder = os.path.join(scratch, str(number))
            os.mkdir(folder)
            try:
                reply(serve(limits, folder, isolated))
            finally:
                end_children()
                empty(scratch)
    remove(scratch)


def seal() -> None:
    """Make devices read-only, so that a root run cannot change them, and drop all capabilities."""
    for name in os.listdir("/dev"):  # bwrap binds devices writable, which lets root change modes
        make_read_only(f"/dev/{name}")
    drop_capabilities()


def serve(limits: dict[str, Any], folder: str, isolated: bool) -> dict[str, Any]:
    """Run the next program and return the reply.

    Raises:
        EOFError: If the run that sends the requests has ended.
    """
    calls, answers, verdicts = os.pipe(), os.pipe(), os.pipe()

    def solution() -> None:
        ends = calls[0], answers[1]
        run_solution(*ends, lambda: confine(limits, folder, ends, isolated))

    def test() -> None:
        request = json.loads(read_line())
        os.write(verdicts[1], READ)
        ends = answers[0], calls[1], verdicts[1]
        run_test(request, *ends, lambda: confine(limits, folder, ends, isolated))

    pids: list[int] = []
    message = None
    in_time = True
    try:
        pids += [fork(test)]
        pids += [fork(solution)]
        for descriptor in (*calls, *answers, verdicts[1]):
            os.close(descriptor)
        if wait(verdicts[0], START_LIMIT_S) and os.read(verdicts[0], len(READ)) == READ:
            in_time = wait(verdicts[0], limits["timeout_s"])
            # A short write is atomic, so one read gets all of it.
            message = os.read(verdicts[0], 4096) if in_time else b""
    finally:
        os.close(verdicts[0])
        statuses = list(map(end, pids))
    if message is None:
        return {"sandbox_error": f"the test's process {ending(statuses[0])} before it began"}
    if not in_time:
        return {"passed": False, "reason": f"timed out after {limits['timeout_s']:g} s"}
    kind, text = message[:1], message[1:].decode(errors="replace")
    if kind == BROKEN:
        return {"sandbox_error": text}
    if kind in (PASSED, FAILED):
        return {"passed": kind == PASSED, "reason": text or "passed"}
    status = statuses[1 if kind == ENDED else 0]
    return {"passed": False, "reason": f"{ending(status)} before its last line"}


def fork(run: Callable[[], None]) -> int:
    """Start a process that runs a function and then exits; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid


def confine(limits: dict[str, Any], folder: str, kept: Sequence[int], isolated: bool) -> None:
    """Drop the worker's session, its descriptors except ``kept``, and its rights."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for low, high in pairwise((2, *sorted(kept), 256)):
        os.closerange(low + 1, high)
    sys.stdin = os.fdopen(0)
    random.seed(0)  # the same program gets the same verdict
    cap(resource.RLIMIT_CPU, math.ceil(limits["timeout_s"]) + 1)
    cap(resource.RLIMIT_AS, limits["memory_mb"] << 20)
    cap(resource.RLIMIT_FSIZE, MAX_FILE_MB << 20)
    cap(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    cap(resource.RLIMIT_CORE, 0)
    cap(resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS)
    if isolated:  # in its own namespace, other processes do not count
        # The threads of the worker and of unshare, and the first of both processes.
        cap(resource.RLIMIT_NPROC, MAX_THREADS + 4)
    drop_capabilities()
    try:
        install_filter()
    except OSError:
        if isolated:  # a limited program then has only the audit hook's refusals
            raise


def read_line() -> bytes:
    """Read one line of the input; the client sends the next one only after a reply."""
    parts = [os.read(0, 1 << 16)]
    while parts[-1] and not parts[-1].endswith(b"\n"):
        parts.append(os.read(0, 1 << 16))
    return b"".join(parts)


def cap(kind: int, value: int) -> None:
    """Lower a limit permanently, never above the machine's own."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def wait(descriptor: int, limit_s: float | None = None) -> bool:
    """Wait until something can be read; return whether that was within the limit.

    Raises:
        EOFError: If our own input ends: nobody waits for the reply any more.
    """
    poller = select.poll()
    poller.register(0, 0)  # reports its end only
    poller.register(descriptor, select.POLLIN)
    events = dict(poller.poll(None if limit_s is None else limit_s * 1000))
    if events.get(0, 0) & ~select.POLLIN:
        raise EOFError
    return bool(events)


def end(pid: int) -> int:
    """End a program and the rest of its process group; return its wait status."""
    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        with contextlib.suppress(ProcessLookupError):
            kill(target, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def end_children() -> None:
    """End the processes that left their program's process group, grandchildren included."""
    while True:
        if os.getpid() == 1:  # in its own namespace, these are all processes
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for pid in file.read().split():
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def ending(status: int) -> str:
    """Describe a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def empty(folder: str) -> None:
    """Empty a folder; ``shutil.rmtree`` fails on a locked tree or one deeper than its stack.

    Raises:
        ValueError: If it is not a scratch folder, by its name, or as process 1 by its path in our
            own root. Any other folder would be somebody's files.
    """
    named = os.path.basename(folder).startswith(SCRATCH_PREFIX)
    if not (named or (os.getpid() == 1 and folder == SCRATCH)):
        raise ValueError(f"{folder} is not a scratch folder, so it will not be emptied.")
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):  # one level up, so that paths stay short
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)
                    os.rename(inner.path, os.path.join(folder, os.urandom(8).hex()))
                os.rmdir(entry.path)


def remove(folder: str) -> None:
    """Remove a folder, or only empty it if it cannot be removed."""
    empty(folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def reply(message: dict[str, Any]) -> None:
    """Send one line in one write."""
    os.write(1, json.dumps(message).encode() + b"\n")
