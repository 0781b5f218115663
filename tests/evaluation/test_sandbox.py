import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sft_lab.errors import RequestError
from sft_lab.evaluation.sandbox import (
    ProgramResult,
    available_levels,
    bubblewrap_state,
    run_programs,
)


def run(*programs: str, timeout_s: float = 10.0, workers: int = 1) -> list[ProgramResult]:
    return run_programs(programs, timeout_s=timeout_s, memory_mb=256, workers=workers)


def runs_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_results_come_in_order() -> None:
    programs = [f"assert {number} % 3" for number in range(30)]
    results = run(*programs, workers=2)
    assert [result.passed for result in results] == [bool(number % 3) for number in range(30)]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'unlike'", "AssertionError: unlike"),
        ("def f(:", "SyntaxError"),
        ("\0", "SyntaxError"),
        ("'\ud800'", "UnicodeEncodeError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("exit = quit = None; raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "exited with 0 before its last line"),
        ("print('passed'); import os; os._exit(0)", "exited with 0"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("input()", "EOFError"),
        ("import numpy", "ModuleNotFoundError"),
        ("x = bytearray(10**9)", "MemoryError"),
        ("x = ['']\nwhile True: x += x", "MemoryError"),
        ("open('big', 'wb').write(bytes(10**8))", "File too large"),
        ("files = [open(f'{i}', 'w') for i in range(999)]", "Too many open files"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "PermissionError"),
        ("open('own', 'w').close(); import os; os.unlink('own')", "PermissionError"),
        ("class E(Exception):\n    def __str__(self): exit()\nraise E", "E"),
    ],
)
def test_failures_say_why_and_leave_the_next_program_alone(program: str, reason: str) -> None:
    failed, passed = run(program, "1 + 1")
    assert not failed.passed
    assert reason in failed.reason
    assert passed == ProgramResult(True, "passed")


def test_a_pass_cannot_be_written_to_every_open_file() -> None:
    shout = "import os\nfor fd in range(64):\n  try: os.write(fd, b'+passed')\n  except OSError: 0"
    assert not run(f"{shout}\nos._exit(0)")[0].passed
    assert not run(shout)[0].passed


@pytest.mark.parametrize(
    "endless",
    [
        "while True: pass",
        "10**10**10",  # one C call, in which Python runs no signal handler
        "while True: print('x' * 10**6)",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "import time; time.sleep(60)",
    ],
)
def test_endless_programs_end_at_the_time_limit(endless: str) -> None:
    assert run(endless, timeout_s=0.3) == [ProgramResult(False, "timed out after 0.3 s")]


def test_much_output_is_no_failure() -> None:
    assert run("import sys\nprint('x' * 10**7)\nprint('y' * 10**7, file=sys.stderr)")[0].passed


def test_each_program_starts_from_nothing() -> None:
    leaver = "open('left', 'w').write('x')\nimport os, builtins\nos.left = builtins.left = 1"
    finder = (
        "import os\nassert not os.listdir() and not dict(os.environ) and not hasattr(os, 'left')"
    )
    assert [result.passed for result in run(leaver, finder)] == [True, True]


def test_sets_and_dice_give_the_same_every_time() -> None:
    program = "import random\nassert False, (random.random(), list(set('abcdefgh')))"
    assert run(program) == run(program)


def test_loss_of_the_fork_server_is_that_program_s_failure() -> None:
    killer = "import ctypes, os; ctypes.CDLL(None).kill(os.getppid(), 9)"
    killed, passed = run(killer, "1 + 1")
    assert killed == ProgramResult(False, "ended the process that watched it")
    assert passed.passed


def test_a_process_that_hides_in_its_own_session_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import ctypes, os, time\n"
        "pid = ctypes.CDLL(None).fork()\n"  # fails at once where the limit on processes holds
        "if pid == 0:\n"
        "    os.setsid()\n"
        f"    os.symlink(str(os.getpid()), {str(note)!r})\n"
        "    time.sleep(60)\n"
        f"while pid > 0 and not os.path.lexists({str(note)!r}):\n"
        "    time.sleep(0.01)\n"
    )
    assert run(program)[0].passed
    assert not (note.is_symlink() and runs_still(int(os.readlink(note))))


def test_a_killed_run_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    program = (
        "import os, time\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} {{os.getcwd()}}\\n')\n"
        "time.sleep(60)"
    )
    script = (
        "from sft_lab.evaluation.sandbox import run_programs\n"
        f"run_programs([{program!r}], timeout_s=60, memory_mb=256, workers=1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child, worker, folder = note.read_text().split()
    assert runs_still(int(child))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while (runs_still(int(child)) or runs_still(int(worker))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs_still(int(child))
    assert not runs_still(int(worker))
    assert not Path(folder).parent.exists()


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    deep = "import os\nfor _ in range(1500):\n  os.mkdir('d'); os.chdir('d')"
    locked = "import os\nos.makedirs('a/b/c'); os.symlink('/', 'a/link')\nos.chmod('a', 0)"
    killer = "import ctypes, os; ctypes.CDLL(None).kill(os.getppid(), 9)"
    results = run("open('left', 'w')", deep, locked, "1 / 0", killer)
    assert [result.passed for result in results] == [True, True, True, False, False]
    assert os.listdir(tmp_path) == []


def test_wrong_limits_are_refused() -> None:
    with pytest.raises(RequestError, match="got 0, 256 and 1"):
        run("1 + 1", timeout_s=0)
    with pytest.raises(RequestError, match="'strict' is not to be had here; available: limited"):
        run_programs(["1"], timeout_s=1, memory_mb=256, workers=1, level="strict")


def test_levels_for_the_doctor() -> None:
    assert available_levels() == ("limited",)
    assert "bwrap" in bubblewrap_state()


def test_no_programs_need_no_process() -> None:
    assert run() == []
