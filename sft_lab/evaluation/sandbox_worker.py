"""The sandbox's fork server, a program of its own: ``python -P -s -S sandbox_worker.py SCRATCH``.

Reads one request a line, ``{"program", "timeout_s", "memory_mb"}``, forks, and writes one line:
``{"passed", "reason"}``, or ``{"sandbox_error"}`` when the fault is ours. It imports nothing of
sft_lab, so that it starts in milliseconds and every fork is small. When its input ends, it ends
what it runs and leaves.
"""

import contextlib
import ctypes
import json
import math
import os
import random
import resource
import select
import signal
import sys
import types
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
PASSED, FAILED, BROKEN = b"+", b"-", b"!"
MAX_FILE_MB = 16
MAX_OPEN_FILES = 64
MAX_REASON_LENGTH = 300

# Against accidents, after HumanEval's ``reliability_guard``: a completion that deletes files, or
# starts or signals processes. RLIMIT_NPROC does not hold root.
REFUSED = {
    "_posixsubprocess": ("fork_exec",),
    "_thread": ("start_joinable_thread", "start_new", "start_new_thread"),
    "os": (
        *("fork", "forkpty", "kill", "killpg", "posix_spawn", "posix_spawnp", "system"),
        *("remove", "rename", "replace", "rmdir", "truncate", "unlink"),
    ),
}


def main(scratch: str) -> None:
    """Serve requests until the input ends."""
    # What a program leaves running becomes our child when its parent goes, so we can end it.
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    reply({"ready": True})
    with contextlib.suppress(EOFError):
        for number, line in enumerate(sys.stdin.buffer):
            folder = os.path.join(scratch, str(number))
            os.mkdir(folder)
            try:
                reply(serve(json.loads(line), folder))
            finally:
                end_children()
                remove(folder)
    remove(scratch)


def serve(request: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run one program and return the reply.

    Raises:
        EOFError: If the run that asked is gone.
    """
    token = os.urandom(16)  # the proof of having come to the end; no output and no exit code is one
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        run(request, folder, write_end, token)
    os.close(write_end)
    try:
        message = wait(read_end, request["timeout_s"])
    finally:
        os.close(read_end)
        status = end(pid)
    if message is None:
        return {"passed": False, "reason": f"timed out after {request['timeout_s']:g} s"}
    if not message.startswith(token):
        return {"passed": False, "reason": f"{ending(status)} before its last line"}
    kind, text = message[len(token) :][:1], message[len(token) + 1 :].decode(errors="replace")
    if kind == BROKEN:
        return {"sandbox_error": text}
    return {"passed": kind == PASSED, "reason": text}


def run(request: dict[str, Any], folder: str, write_end: int, token: bytes) -> NoReturn:
    """Be the program: take the limits on, run it, prove that it ended."""
    write, leave = os.write, os._exit  # the program can replace them in their module
    try:
        confine(request["timeout_s"], request["memory_mb"], folder, write_end)
    except BaseException as error:
        write(write_end, token + BROKEN + describe(error))
        leave(1)
    try:
        module = types.ModuleType("program")
        sys.modules["program"] = module
        exec(compile(request["program"], "program.py", "exec"), module.__dict__)
        verdict = PASSED + b"passed"
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no way to pass either
        verdict = FAILED + describe(error)
    write(write_end, token + verdict)
    leave(0)


def confine(timeout_s: float, memory_mb: int, folder: str, write_end: int) -> None:
    """Leave the worker's session, files and rights behind."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, write_end)
    os.closerange(write_end + 1, 256)
    os.environ.clear()
    sys.stdin = os.fdopen(0)  # the worker's own may have read ahead
    random.seed(0)  # the same program gets the same verdict
    cap(resource.RLIMIT_CPU, math.ceil(timeout_s) + 1)
    cap(resource.RLIMIT_AS, memory_mb << 20)
    cap(resource.RLIMIT_FSIZE, MAX_FILE_MB << 20)
    cap(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    cap(resource.RLIMIT_NPROC, 0)
    cap(resource.RLIMIT_CORE, 0)
    for name, functions in REFUSED.items():
        module = __import__(name)
        for function in functions:
            setattr(module, function, refuse)


def refuse(*_: object, **__: object) -> NoReturn:
    """Stand in for what a program may not do."""
    raise PermissionError("the sandbox does not allow this call")


def cap(kind: int, value: int) -> None:
    """Lower a limit for good, never above what the machine already sets."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def describe(error: BaseException) -> bytes:
    """Return type and text of an error, whose own methods may fail as well."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = type(error).__name__
    return text[:MAX_REASON_LENGTH].encode(errors="replace")


def wait(read_end: int, timeout_s: float) -> bytes | None:
    """Return the program's first message, b"" when it ended without one, None at the time limit.

    Raises:
        EOFError: If our own input ends, since then nobody waits for the reply.
    """
    poller = select.poll()
    poller.register(read_end, select.POLLIN)
    poller.register(0, select.POLLIN)
    ready = [descriptor for descriptor, _ in poller.poll(timeout_s * 1000)]
    if 0 in ready:
        raise EOFError
    # A short write is atomic, so one read has all of it, and a program that floods the pipe fails.
    return os.read(read_end, 4096) if ready else None


def end(pid: int) -> int:
    """End a program and the rest of its process group; return its wait status."""
    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        with contextlib.suppress(ProcessLookupError):
            kill(target, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def end_children() -> None:
    """End what left its program's process group, down to the last grandchild."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in file.read().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def ending(status: int) -> str:
    """Put a wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def remove(folder: str) -> None:
    """Remove a folder; ``shutil.rmtree`` fails on a locked tree or one deeper than its stack."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):  # one level up, so no path grows long
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)
                    os.rename(inner.path, os.path.join(folder, os.urandom(8).hex()))
                os.rmdir(entry.path)
        os.rmdir(folder)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, for which Python has no function."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def reply(message: dict[str, Any]) -> None:
    """Send one line in one write."""
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
