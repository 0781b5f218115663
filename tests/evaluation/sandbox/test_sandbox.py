"""Test both levels: limits, verdicts, and a grader that nothing harms."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sandboxes import run, running

from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox.isolation import TOOLS, Route, limited_command
from sft_lab.evaluation.sandbox.sandbox import (
    Level,
    Program,
    ProgramResult,
    isolation_fault,
    isolation_route,
    rank_cores,
    resolve_level,
    run_programs,
)

PASSED = ProgramResult(True, "passed")

# Makes a system call directly, without any Python function.
LIBC = "import ctypes, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def runs_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_results_come_in_order(level: Level) -> None:
    programs = [f"assert {number} % 3" for number in range(30)]
    results = run(level, *programs, workers=2)
    assert [result.passed for result in results] == [bool(number % 3) for number in range(30)]


FAILURES = [
    ("assert 1 == 2, 'unlike'", "AssertionError: unlike"),
    ("def f(:", "SyntaxError"),
    ("\0", "SyntaxError"),
    ("'\ud800'", "UnicodeEncodeError"),
    ("import sys; sys.exit(0)", "SystemExit: 0"),
    ("exit = quit = None; raise SystemExit", "SystemExit"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("import os; os._exit(0)", "exited with 0 before its last line"),
    ("import os; os.abort()", "ended by SIGABRT"),
    ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
    ("input()", "EOFError"),
    ("import sft_lab", "ModuleNotFoundError"),
    ("open('big', 'wb').write(bytes(10**8))", "File too large"),
    ("files = [open(f'{i}', 'w') for i in range(999)]", "Too many open files"),
    ("import os; os.fork()", "PermissionError"),
    ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
    ("import subprocess; subprocess.run(['true'])", "PermissionError"),
    ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
    ("import socket; socket.socket()", "PermissionError"),
    ("open('own', 'w').close(); import os; os.unlink('own')", "PermissionError"),
    ("class E(Exception):\n    def __str__(self): exit()\nraise E", "E"),
]


def test_failures_give_a_reason_and_leave_the_next_program_alone(level: Level) -> None:
    results = run(level, *(text for program, _ in FAILURES for text in (program, "1 + 1")))
    for (program, reason), failed in zip(FAILURES, results[::2], strict=True):
        assert not failed.passed, program
        assert reason in failed.reason, program
    assert results[1::2] == [PASSED] * len(FAILURES)


@pytest.mark.parametrize(
    "endless",
    [
        "while True: pass",
        "10**10**10",  # one C call, in which Python runs no signal handler
        "while True: print('x' * 10**6)",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "import time; time.sleep(60)",
        "import threading\nhold = threading.Lock()\nhold.acquire()\nhold.acquire()",
    ],
)
def test_endless_programs_end_at_the_time_limit(level: Level, endless: str) -> None:
    timed_out, passed = run(level, endless, "1 + 1", timeout_s=0.3)
    assert timed_out == ProgramResult(False, "timed out after 0.3 s")
    assert passed.passed


@pytest.mark.parametrize(
    "bomb",
    [
        "x = bytearray(10**9)",
        "x = ['']\nwhile True: x += x",
        "x = []\nwhile True: x.append(bytearray(10**7))",
        "import mmap\nx = [mmap.mmap(-1, 10**8) for _ in range(99)]",
    ],
)
def test_memory_bombs_fail(level: Level, bomb: str) -> None:
    failed, passed = run(level, bomb, "1 + 1")
    assert failed.reason.startswith(("MemoryError", "OSError: [Errno 12]"))
    assert passed.passed


def test_memory_outside_the_address_space_is_refused(level: Level) -> None:
    programs = ["import os; os.memfd_create('m')", LIBC + "assert libc.shmget(0, 4096, 0o1600) < 0"]
    assert [result.passed for result in run(level, *programs)] == [False, True]


def test_thread_bombs_end(level: Level) -> None:
    bomb = (
        "import _thread, time\n_thread.stack_size(65536)\n"
        "while True: _thread.start_new_thread(time.sleep, (60,))"
    )
    failed, passed = run(level, bomb, "1 + 1", timeout_s=5)
    assert failed.reason == "PermissionError: the sandbox allows 128 threads"
    assert passed.passed


def test_threads_work_and_may_outlive_the_program(level: Level) -> None:
    pool = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "assert list(ThreadPoolExecutor().map(abs, [-1, -2])) == [1, 2]"
    )
    sleeper = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    start = time.monotonic()
    assert [result.passed for result in run(level, pool, sleeper, "1 + 1")] == [True] * 3
    assert time.monotonic() - start < 10


def test_fork_bombs_and_zombies_cannot_begin(level: Level) -> None:
    calls = [
        "libc.fork()",
        "libc.vfork()",
        "libc.syscall(libc_clone, 17, 0, 0, 0, 0)",
        "libc.syscall(435, ctypes.create_string_buffer(88), 88)",
        "libc.unshare(0x10000000)",
    ]
    machine = os.uname().machine
    clone = f"libc_clone = {56 if machine == 'x86_64' else 220}\n"
    bombs = [f"{LIBC}{clone}assert {call} == -1" for call in calls]
    assert run(level, *bombs, "1 + 1") == [PASSED] * (len(bombs) + 1)


def test_other_processes_cannot_be_signalled(level: Level) -> None:
    killer = LIBC + (
        "assert libc.kill(os.getppid(), 9) == libc.kill(-1, 9) == libc.kill(0, 9) == -1\n"
        "assert libc.syscall(424, 0, 9, 0, 0) == libc.syscall(434, os.getppid(), 0) == -1"
    )
    results = run(level, killer, "import signal; signal.raise_signal(9)", "1 + 1")
    assert results[0].passed
    assert results[1].reason == "ended by SIGKILL before its last line"
    assert results[2].passed


# Each would change the process ``pid``: its limits, priority, affinity, scheduling, process group,
# memory, or who gets a file's signals. The values are harmless.
ON_A_PROCESS = """
import ctypes, fcntl, os, resource, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
machine = os.uname().machine == 'aarch64'
nice = os.getpriority(os.PRIO_PROCESS, 0)  # no lower one is allowed to anybody but root
end = os.pipe()[0]
calls = {
    'prlimit': lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
    'setpriority': lambda pid: os.setpriority(os.PRIO_PROCESS, pid, nice),
    'sched_setaffinity': lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
    'sched_setscheduler': lambda pid: os.sched_setscheduler(
        pid, os.SCHED_OTHER, os.sched_param(0)),
    'sched_setparam': lambda pid: os.sched_setparam(pid, os.sched_param(0)),
    'sched_setattr': lambda pid: call(
        274 if machine else 314, pid, struct.pack('IIQi28x', 48, 0, 0, nice), 0),
    'ioprio_set': lambda pid: call(30 if machine else 251, 1, pid, 0),
    'F_SETOWN': lambda pid: fcntl.fcntl(end, fcntl.F_SETOWN, pid),
}
def call(number, *arguments):
    if libc.syscall(number, *arguments):
        raise OSError(ctypes.get_errno(), 'call')
def refused(name, function, *arguments):
    try: function(*arguments)
    except PermissionError: return
    raise Exception(name)
"""


def test_calls_on_a_process_reach_the_program_itself_only(level: Level) -> None:
    own = "for name, function in calls.items():\n    function(0); function(os.getpid())"
    others = (
        f"for pid in (os.getppid(), 1, {os.getpid()}, -1):\n"
        "    for name, function in calls.items(): refused(name, function, pid)\n"
        "    refused('setpgid', os.setpgid, pid, pid)\n"
        "    for number in ((238, 239) if machine else (256, 279)):\n"
        "        refused(number, call, number, pid, 0, 0, 0, 0, 0)\n"
        "for kind in (os.PRIO_PGRP, os.PRIO_USER): refused(kind, os.setpriority, kind, 0, 1)\n"
        "for kind in (2, 3): refused(kind, call, 30 if machine else 251, kind, 0, 0)\n"
        "refused('F_SETOWN_EX', fcntl.fcntl, end, 15, struct.pack('ii', 1, os.getpid()))\n"
        "a, b = socket.socketpair()\n"
        "for request in (0x8901, 0x8902):\n"
        "    refused(request, fcntl.ioctl, a, request, struct.pack('i', os.getpid()))\n"
        "refused('core', call, 167 if machine else 157, 62, 2, os.getppid(), 0, 0)"
    )
    assert run(level, ON_A_PROCESS + own, ON_A_PROCESS + others, "1 + 1") == [PASSED] * 3


def test_a_program_cannot_change_the_next_one_s_worker(level: Level) -> None:
    harm = (
        "import os, resource as r\n"
        "def lower(*call):\n"
        "    try: call[0](*call[1:])\n    except OSError: pass\n"
        "worker = os.getppid()\n"
        "for kind, value in ((r.RLIMIT_NOFILE, {files}), (r.RLIMIT_FSIZE, 0), (r.RLIMIT_CPU, 1)):\n"
        "    lower(r.prlimit, worker, kind, (value, value))\n"
        "lower(os.setpriority, os.PRIO_PROCESS, worker, 19)\n"
        "lower(os.sched_setscheduler, worker, os.SCHED_IDLE, os.sched_param(0))\n"
        "lower(os.sched_setaffinity, worker, [min(os.sched_getaffinity(0))])"
    )
    state = (
        "import os, resource as r\nassert False, [os.nice(0), os.sched_getscheduler(0), "
        "os.sched_getaffinity(0), *map(r.getrlimit, range(10))]"
    )
    harms = (harm.format(files=7), harm.format(files=3))
    before, *_, after, last = run(level, state, *harms, state, "1 + 1")
    assert after == before
    assert last == PASSED


def test_extended_attributes_and_new_mount_calls_are_refused(level: Level) -> None:
    program = LIBC + (
        "open('file', 'w').close()\n"
        "try: os.setxattr('file', 'user.x', bytes(9))\n"
        "except PermissionError: pass\nelse: raise Exception\n"
        "for number in (448, 463, 467, 469):\n"
        "    assert libc.syscall(number, -1, b'', 0, 0, 0, 0) == -1\n"
        "    assert ctypes.get_errno() == 1, number"
    )
    assert run(level, program) == [PASSED]


HOLDING = [
    "fcntl.fcntl(library, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
    "fcntl.fcntl(library, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "fcntl.fcntl(os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)",
    "fcntl.flock(library, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)",
    "check(libc.inotify_init1(0))",
    "check(libc.prctl(1, 0, 0, 0, 0))",
    "check(libc.syscall(206 if is_x86 else 0, 65000, ctypes.byref(ctypes.c_ulong(0))))",  # AIO
    "check(libc.klogctl(3, ctypes.create_string_buffer(99), 99))",  # the kernel's log
    "check(libc.syncfs(library))",
    "libc.sync(); check(-ctypes.get_errno())",
    "socket.socketpair(30)",  # TIPC, whose module would be loaded
    "os.nice(-1)",
    "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
]


def test_nothing_shared_with_the_machine_can_be_held(level: Level) -> None:
    prelude = LIBC + (
        "import fcntl, socket\n"
        "is_x86 = os.uname().machine == 'x86_64'\n"
        "socket.socketpair()\n"
        "library = os.open(os.path.join(os.path.dirname(os.__file__), 'this.py'), os.O_RDONLY)\n"
        "def check(result):\n    if result < 0: raise OSError(ctypes.get_errno(), 'call')\n"
    )
    programs = [
        f"{prelude}try: {attempt}\nexcept PermissionError: pass\nelse: raise Exception"
        for attempt in HOLDING
    ]
    results = dict(zip(HOLDING, run(level, *programs), strict=True))
    assert results == dict.fromkeys(HOLDING, PASSED)


def test_open_files_cannot_be_hoarded_in_a_socket(level: Level) -> None:
    hoard = (
        "import array, os, socket\nhere, there = socket.socketpair()\ncount = 0\n"
        "try:\n    while True:\n        ends = os.pipe()\n"
        "        rights = array.array('i', ends)\n"
        "        here.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n"
        "        count += sum(os.close(end) is None for end in ends)\n"
        "except OSError: pass\nassert count <= 128, count"
    )
    assert run(level, hoard) == [PASSED]


def test_pending_signals_and_timers_are_bounded(level: Level) -> None:
    timers = LIBC + (
        "timer, count = ctypes.c_void_p(), 0\n"
        "while libc.timer_create(1, None, ctypes.byref(timer)) == 0: count += 1\n"
        "assert count <= 1024"
    )
    assert run(level, timers) == [PASSED]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other system call tables of x86-64")
def test_other_system_call_tables_are_refused(level: Level) -> None:
    x32 = "assert libc.syscall(0x40000000 + 57) == -1"
    machine_code = (
        "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b802000000cd80c3'))  # fork by int 0x80\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == -1"
    )
    assert run(level, LIBC + x32, LIBC + machine_code) == [PASSED, PASSED]


@pytest.mark.parametrize(
    "harm",
    [
        "import signal; signal.raise_signal(signal.SIGSTOP)",
        "import os, time\nfor n in range(9):\n    try: os.mkdir(f'../{n}')\n"
        "    except FileExistsError: pass\nos.symlink('/etc', '../9'); os.chmod('..', 0)\n"
        "time.sleep(60)",
        "import os, time\nfor end in range(3, 64):\n    try: os.close(end)\n"
        "    except OSError: pass\ntime.sleep(60)",
    ],
)
def test_a_stopped_or_silent_program_ends_and_the_next_one_runs(level: Level, harm: str) -> None:
    failed, passed = run(level, harm, "open('file', 'w').write('x')", timeout_s=0.5)
    assert not failed.passed
    assert passed == PASSED


@pytest.mark.parametrize(
    ("kills", "result"),
    [
        (1, PASSED),
        (2, ProgramResult(False, "broke two workers: the worker ended, or did not answer")),
    ],
)
def test_a_broken_worker_is_replaced_and_its_program_run_again(
    level: Level, kills: int, result: ProgramResult
) -> None:
    def kill_workers() -> None:
        for _ in range(kills):
            worker = running(os.getpid())[-3]
            os.kill(worker, signal.SIGKILL)
            while runs_still(worker):
                time.sleep(0.01)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    results = run(level, "import time; time.sleep(1)", "1 + 1")
    killer.join()
    assert results == [result, PASSED]


def test_the_worker_cannot_be_reached_through_proc(level: Level) -> None:
    program = (
        "import os\n"
        "for name in ('fd/1', 'mem', 'root', 'cwd', 'environ'):\n"
        "    try: os.open(f'/proc/{os.getppid()}/{name}', os.O_RDONLY)\n"
        "    except OSError: continue\n"
        "    raise Exception(name)"
    )
    assert run(level, program) == [PASSED]


def test_limits_cannot_be_raised(level: Level) -> None:
    raiser = "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))"
    (result,) = run(level, raiser)
    assert not result.passed
    assert "not allowed to raise maximum limit" in result.reason


def test_much_output_is_allowed(level: Level) -> None:
    printer = "import sys\nprint('x' * 10**7)\nprint('y' * 10**7, file=sys.stderr)"
    assert run(level, printer)[0].passed


def test_each_program_starts_from_nothing(level: Level) -> None:
    leaver = (
        "import os, builtins, tempfile\nopen('left', 'w').write('x')\nos.left = builtins.left = 1\n"
        "open(os.path.join(os.path.dirname(os.getcwd()), 'left'), 'w').write('x')"
    )
    finder = (
        "import os\nassert not os.listdir() and not hasattr(os, 'left')\n"
        "assert set(os.environ) == {'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'TZ'}\n"
        "assert os.listdir('..') == [os.path.basename(os.getcwd())]"
    )
    assert run(level, leaver, finder) == [PASSED] * 2


def test_sets_and_random_numbers_are_deterministic(level: Level) -> None:
    program = "import random\nassert False, (random.random(), list(set('abcdefgh')))"
    assert run(level, program) == run(level, program)


def test_installed_packages_can_be_imported(level: Level) -> None:
    assert run(level, "import numpy\nassert numpy.arange(4).reshape(2, 2).T[0, 1] == 2")[0].passed


def test_a_killed_run_leaves_no_process_and_no_folder(level: Level, tmp_path: Path) -> None:
    script = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from sft_lab.evaluation.sandbox.sandbox import Program, run_programs\n"
        "run_programs([Program('import time; time.sleep(60)', '')], "
        f"timeout_s=60, memory_mb=256, workers=1, level={level!r})"
    )
    run_process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    found = running(run_process.pid)
    # The worker and the program's two processes, below bwrap or unshare if isolated.
    assert len(found) == {"limited": 3, "isolated": 4}[level]
    run_process.send_signal(signal.SIGKILL)
    run_process.wait()
    deadline = time.monotonic() + 30
    while any(map(runs_still, found)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(runs_still, found))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_in_the_temporary_folder(
    level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    deep = "import os\nfor _ in range(1500):\n  os.mkdir('d'); os.chdir('d')"
    links = (
        f"import os\nos.makedirs('a/b/c'); os.symlink({str(outside)!r}, 'a/link')\n"
        f"os.symlink({str(outside)!r}, 'link'); os.symlink('..', 'up'); os.chmod('a', 0)"
    )
    results = run(level, "open('left', 'w')", deep, links, "1 / 0", "import os; os._exit(1)")
    assert [result.passed for result in results] == [True, True, True, False, False]
    assert os.listdir(scratch) == []
    assert (outside / "kept").read_text() == "kept"


def test_a_worker_refuses_a_folder_with_files(tmp_path: Path) -> None:
    scratch = tmp_path / "sft-sandbox-taken"
    (scratch / "inner").mkdir(parents=True)
    (scratch / "inner/kept").write_text("kept")
    worker = subprocess.run(
        limited_command(str(scratch)), input=b"", capture_output=True, env={}, check=False
    )
    assert worker.returncode == 1
    assert f"RuntimeError: the scratch folder {scratch} is not empty".encode() in worker.stderr
    assert (scratch / "inner/kept").read_text() == "kept"


def test_wrong_limits_are_refused(level: Level) -> None:
    with pytest.raises(RequestError, match="got 0, 256 and 1"):
        run(level, "1 + 1", timeout_s=0)


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert rank_cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert rank_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert rank_cores() == 1


def test_an_empty_list_of_programs_needs_no_process(level: Level) -> None:
    assert run(level) == []


def test_a_choice_resolves_to_a_level(level: Level) -> None:
    assert resolve_level(level) == level
    assert resolve_level("isolated_or_limited") == ("limited" if isolation_fault() else "isolated")
    with pytest.raises(RequestError, match="isolated_or_limited or limited, got 'strict'"):
        run_programs([Program("", "")], timeout_s=1, memory_mb=256, workers=1, level="strict")  # type: ignore[arg-type]


def test_without_bubblewrap_util_linux_isolates(
    route: Route, util_linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(util_linux))
    assert (isolation_route(), isolation_fault()) == ("util-linux", None)
    assert resolve_level("isolated") == "isolated"


def test_isolation_is_refused_if_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = r"bubblewrap: no bwrap on PATH; util-linux: no setpriv, unshare, .*umount on PATH\. "
    with pytest.raises(RequestError, match=missing + "Install .* sandbox: limited"):
        resolve_level("isolated")
    assert isolation_route() is None
    assert resolve_level("isolated_or_limited") == "limited"
    for tool in ("bwrap", *TOOLS["util-linux"]):
        (tmp_path / tool).write_text(
            f"#!/bin/sh\necho 'no namespaces for {tool}' >&2\necho '  a hint' >&2\nexit 1\n"
        )
        (tmp_path / tool).chmod(0o755)
    faults = [
        f"the sandbox did not start: no namespaces for {tool}" for tool in ("bwrap", "setpriv")
    ]
    with pytest.raises(RequestError, match=f"bubblewrap: {faults[0]}; util-linux: {faults[1]}"):
        resolve_level("isolated")


def test_only_a_scratch_folder_is_emptied(tmp_path: Path) -> None:
    from sft_lab.evaluation.sandbox.worker import empty, main

    (tmp_path / "kept").write_text("x")
    with pytest.raises(ValueError, match="is not a scratch folder"):
        empty(str(tmp_path))
    # A worker that wrongly believes it is in its sandbox stops before it touches a file.
    with pytest.raises(RuntimeError, match="process 1 of its sandbox"):
        main(str(tmp_path), [], True)
    assert (tmp_path / "kept").read_text() == "x"
