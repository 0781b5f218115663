"""What an isolated program cannot see, reach or write; these need bubblewrap."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandboxes import needs_isolation, run

from sft_lab.evaluation.sandbox import Program, ProgramResult, run_programs

pytestmark = needs_isolation

PASSED = ProgramResult(True, "passed")
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def test_the_project_the_home_folder_and_secrets_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    project = Path(__file__).parents[2]
    hidden = [
        *(secret, Path.home() / ".ssh", Path.home() / ".bashrc", Path.home() / ".cache"),
        *(project / "README.md", project / "sft_lab/cli.py", project / ".git"),
        *map(Path, ("/etc/passwd", "/etc/shadow", "/proc/self", "/sys/kernel", "/usr/bin/env")),
        *map(Path, ("/run", "/var", "/dev/shm", "/dev/tty", "/var/run/docker.sock")),
    ]
    program = (
        f"import os\nfor path in {[str(path) for path in hidden]}:\n"
        "    assert not os.path.lexists(path), path\n"
        "assert 'SECRET_TOKEN' not in os.environ\n"
    )
    environ = (
        LIBC + "libc.getenv.restype = ctypes.c_char_p\nassert not libc.getenv(b'SECRET_TOKEN')"
    )
    assert run("isolated", program, environ) == [PASSED, PASSED]


def test_nothing_can_be_written_outside_the_scratch_folder() -> None:
    program = f"""
import os
tried = 0
for folder, _, files in os.walk('/'):
    if folder.startswith('/tmp') or folder.count('/') > 3:
        continue
    tried += 1
    try: open(os.path.join(folder, 'new'), 'w')
    except OSError: pass
    else: raise Exception(folder)
    for file in files[:3]:
        if not folder.startswith('/dev'):
            try: open(os.path.join(folder, file), 'a')
            except OSError: pass
            else: raise Exception(os.path.join(folder, file))
assert tried > 9
for path in {[sys.prefix, sys.base_prefix, "/worker/sft_lab/evaluation/sandbox_worker.py"]!r}:
    try: os.chmod(path, 0o777)
    except OSError: continue
    raise Exception(path)
"""
    assert run("isolated", program) == [PASSED]


def test_the_scratch_folder_is_small() -> None:
    program = "for i in range(99):\n    open(f'{i}', 'wb').write(bytes(10**7))"
    full, next_one = run("isolated", program, "open('0', 'wb').write(bytes(10**7))")
    assert "No space left on device" in full.reason
    assert next_one == PASSED


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    program = (
        f"import os\nos.symlink({str(tmp_path)!r}, 'link')\n"
        "try: open('link/file')\nexcept FileNotFoundError: pass\nelse: raise Exception\n"
        "try: open('link/new', 'w')\nexcept FileNotFoundError: pass\nelse: raise Exception"
    )
    assert run("isolated", program) == [PASSED]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken: list[object] = []
        thread = threading.Thread(target=lambda: taken.append(server.accept()), daemon=True)
        thread.start()
        program = (
            "import socket\n"
            f"for call in (lambda: socket.create_connection(('127.0.0.1', {port}), 1),\n"
            "             lambda: socket.getaddrinfo('example.com', 80),\n"
            "             lambda: socket.socket(socket.AF_UNIX)):\n"
            "    try: call()\n    except OSError: continue\n    raise Exception"
        )
        assert run("isolated", program) == [PASSED]
        assert taken == []


def test_other_processes_cannot_be_seen_or_signalled() -> None:
    program = LIBC + (
        "assert os.getppid() == 1 and os.getpid() < 100\n"
        f"assert libc.kill({os.getpid()}, 0) == libc.kill(1, 9) == libc.kill(-1, 9) == -1\n"
        "assert not os.path.exists('/proc/1')"
    )
    assert run("isolated", program, "1 + 1") == [PASSED, PASSED]


def test_rights_and_namespaces_cannot_be_had() -> None:
    program = LIBC + (
        "assert os.getuid() == 65534\n"
        "assert libc.unshare(0x10000000) == -1 and libc.chroot(b'/tmp') == -1\n"
        "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == -1\n"
        "assert libc.setuid(0) == -1 and libc.ptrace(16, 1, 0, 0) == -1"
    )
    assert run("isolated", program) == [PASSED]


def test_programs_side_by_side_do_not_meet() -> None:
    meet = (
        "import os, time\nopen('/tmp/met', 'x').close()\ntime.sleep(0.2)\n"
        "assert len(os.listdir('/tmp')) == 2"
    )
    programs = [Program(meet, "")] * 4
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=2, level="isolated")
    assert results == [PASSED] * 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_than_root_can_isolate(tmp_path: Path) -> None:
    python = "/usr/bin/python3"  # one that other users may start
    version = subprocess.run(
        [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False
    )
    if version.returncode:
        pytest.skip(f"{python} is missing or older than 3.11")
    package = Path(__file__).parents[2] / "sft_lab"
    for name in ("__init__.py", "errors.py", "evaluation/__init__.py"):
        (tmp_path / "sft_lab/evaluation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sft_lab" / name).write_bytes((package / name).read_bytes())
    for path in package.glob("evaluation/sandbox*.py"):
        (tmp_path / "sft_lab/evaluation" / path.name).write_bytes(path.read_bytes())
    script = (
        "from sft_lab.evaluation.sandbox import *\n"
        "bomb = 'import _thread, time\\nwhile True: _thread.start_new_thread(time.sleep, (9,))'\n"
        "for level in ('limited', 'isolated'):\n"
        "    print(run_programs([Program('x = 1', 'assert x == 1'), Program(bomb, '')],"
        " timeout_s=5, memory_mb=256, workers=1, level=level))\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    outcome = subprocess.run(
        [python, "-c", script],
        user=65534,
        group=65534,
        extra_groups=[],
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.stdout.count("reason='passed'") == 2, outcome.stderr
    assert outcome.stdout.count("passed=False") == 2
