"""Serve the sandbox's requests by forking; ``main`` runs in a light interpreter, once per worker.

Reads one request per line, ``{"solution", "test", "entry_point", "timeout_s", "memory_mb"}``,
forks, and writes one line: ``{"passed", "reason"}``, or ``{"sandbox_error"}`` if the sandbox is at
fault. Of sft_lab it imports only its neighbours, so that it starts fast and every fork is small.
When its input ends, it ends all that it runs and exits.
"""

import contextlib
import importlib
import json
import math
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from sft_lab.evaluation.sandbox.program import (
    BROKEN,
    FAILED,
    MAX_THREADS,
    PASSED,
    PRELOADED,
    Pristine,
    describe,
    limit_threads,
    play,
)
from sft_lab.evaluation.sandbox.seccomp import (
    drop_capabilities,
    install_filter,
    make_read_only,
    prctl,
)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h
SCRATCH_PREFIX = "sft-sandbox-"
SCRATCH = "/scratch"  # of an isolated worker; not /tmp, under which an interpreter may lie
MAX_FILE_MB = 16
MAX_OPEN_FILES = 64
# One thread per program, and the same clock everywhere.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TZ": "UTC"}


def main(scratch: str, site_packages: Sequence[str], isolated: bool) -> None:
    """Serve requests until the input ends.

    Args:
        scratch: Folder for files that programs write, emptied after each.
        site_packages: Folders that programs may import from besides the standard library.
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
    pristine = Pristine()
    pristine.add()
    reply({"ready": True})
    snapshots = [pristine]
    del pristine
    with contextlib.suppress(EOFError):
        for number, line in enumerate(sys.stdin.buffer):
            folder = os.path.join(scratch, str(number))
            os.mkdir(folder)
            try:
                reply(serve(json.loads(line), folder, snapshots, isolated))
            finally:
                end_children()
                empty(scratch)
    remove(scratch)


def seal() -> None:
    """Make devices read-only, so that a root run cannot change them, and drop all capabilities."""
    for name in os.listdir("/dev"):  # bwrap binds devices writable, which lets root change modes
        make_read_only(f"/dev/{name}")
    drop_capabilities()


def serve(
    request: dict[str, Any], folder: str, snapshots: list[Pristine], isolated: bool
) -> dict[str, Any]:
    """Run one program and return the reply.

    Raises:
        EOFError: If the run that sent the request has ended.
    """
    read_end, write_end = os.pipe()
    token_end, token_write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        confine(request, folder, token_end, write_end, isolated)
        play(request, snapshots, lambda: read_once(token_end), write_end)
    os.close(write_end)
    os.close(token_end)
    # The proof that the program ran to its end; drawn after the fork, so that no frame of the
    # program's process holds it.
    token = os.urandom(16)
    try:
        with contextlib.suppress(BrokenPipeError):
            os.write(token_write_end, token)
        os.close(token_write_end)
        message = wait(read_end, request["timeout_s"])
    finally:
        os.close(read_end)
        status = end(pid)
    if message is None:
        return {"passed": False, "reason": f"timed out after {request['timeout_s']:g} s"}
    if message == token + PASSED:
        return {"passed": True, "reason": "passed"}
    if message.startswith(token + BROKEN):
        return {"sandbox_error": message[len(token + BROKEN) :].decode(errors="replace")}
    if message.startswith(FAILED):
        return {"passed": False, "reason": message[len(FAILED) :].decode(errors="replace")}
    return {"passed": False, "reason": f"{ending(status)} before its last line"}


def confine(
    request: dict[str, Any], folder: str, token_end: int, write_end: int, isolated: bool
) -> None:
    """Drop the worker's session, files and rights; if that fails, report why and exit."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        first, last = sorted((token_end, write_end))
        for low, high in ((3, first), (first + 1, last), (last + 1, 256)):
            os.closerange(low, high)
        sys.stdin = os.fdopen(0)  # the worker's stdin may have read ahead
        random.seed(0)  # the same program gets the same verdict
        cap(resource.RLIMIT_CPU, math.ceil(request["timeout_s"]) + 1)
        cap(resource.RLIMIT_AS, request["memory_mb"] << 20)
        cap(resource.RLIMIT_FSIZE, MAX_FILE_MB << 20)
        cap(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
        cap(resource.RLIMIT_CORE, 0)
        if isolated:  # in its own namespace, other processes do not count
            # The threads of the worker and of unshare, and the program's first.
            cap(resource.RLIMIT_NPROC, MAX_THREADS + 3)
        drop_capabilities()
        try:
            install_filter()
        except OSError:
            if isolated:  # a limited program then has only the audit hook's refusals
                raise
    except BaseException as error:
        os.write(write_end, read_once(token_end) + BROKEN + describe(error))
        os._exit(1)


def read_once(descriptor: int) -> bytes:
    """Read a short message and close the descriptor."""
    message = os.read(descriptor, 64)
    os.close(descriptor)
    return message


def cap(kind: int, value: int) -> None:
    """Lower a limit permanently, never above the machine's own."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def wait(read_end: int, timeout_s: float) -> bytes | None:
    """Return the program's first message, b"" if it ended without one, None at the time limit.

    Raises:
        EOFError: If our own input ends: nobody waits for the reply any more.
    """
    poller = select.poll()
    poller.register(read_end, select.POLLIN)
    poller.register(0, select.POLLIN)
    ready = [descriptor for descriptor, _ in poller.poll(timeout_s * 1000)]
    if 0 in ready:
        raise EOFError
    # A short write is atomic, so one read gets all of it; a program that floods the pipe fails.
    return os.read(read_end, 4096) if ready else None


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
        raise ValueError(f"{folder} is no scratch folder, and will not be emptied.")
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
