"""Test that isolated programs can see, reach and write nothing, by every available route."""

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path

import pytest
from sandboxes import run, running, status

from sft_lab.evaluation.sandbox.isolation import Route
from sft_lab.evaluation.sandbox.sandbox import (
    Program,
    ProgramResult,
    resolve_level,
    run_programs,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("route")]

PASSED = ProgramResult(True, "passed")
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def test_the_project_the_home_folder_and_secrets_are_invisible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    project = Path(__file__).parents[3]
    hidden = [
        *(secret, Path.home() / ".ssh", Path.home() / ".bashrc", Path.home() / ".cache"),
        *(project / "README.md", project / "sft_lab/commands/main.py", project / ".git"),
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
    if folder.startswith('/scratch') or folder.count('/') > 3:
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
for path in {[sys.prefix, sys.base_prefix, "/worker/sft_lab/evaluation/sandbox/worker.py"]!r}:
    try: os.chmod(path, 0o777)
    except OSError: continue
    raise Exception(path)
"""
    assert run("isolated", program) == [PASSED]


def test_devices_work_and_cannot_be_changed() -> None:
    program = """
import os
assert open('/dev/null', 'wb').write(b'x') == 1 and open('/dev/zero', 'rb').read(1) == bytes(1)
assert len(os.listdir('/dev')) == 5
for name in (*os.scandir('/dev'), 0):  # by descriptor, too: 0 is /dev/null
    # Its present mode, so that a failing test harms no machine.
    try: os.chmod(name, os.stat(name).st_mode & 0o7777)
    except OSError as error: assert error.strerror == 'Read-only file system', error
    else: raise Exception(name)
"""
    assert run("isolated", program) == [PASSED]


def test_mounts_inside_a_bound_folder_are_read_only_too(tmp_path: Path) -> None:
    folder = Path(sysconfig.get_path("stdlib")).resolve() / "wsgiref"
    program = f"open({str(folder / 'there')!r})\nopen({str(folder / 'new')!r}, 'w')"
    script = tmp_path / "script.py"
    script.write_text(
        "from sft_lab.evaluation.sandbox.sandbox import *\n"
        f"print(run_programs([Program({program!r}, '')],"
        " timeout_s=5, memory_mb=256, workers=1, level='isolated'))\n"
    )
    # In a user namespace, where the kernel does not let go of a mount's flags.
    mount = f"mount -t tmpfs -o nosuid,noexec,noatime none {folder} && : > {folder}/there"
    outcome = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, str(script)),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Read-only file system" in outcome.stdout, outcome.stderr


def test_the_worker_has_no_rights_and_only_its_own_mounts(route: Route) -> None:
    sleeper = Program("import time; time.sleep(1)", "")
    thread = threading.Thread(
        target=run_programs,
        args=([sleeper],),
        kwargs={"timeout_s": 5, "memory_mb": 256, "workers": 1, "level": "isolated"},
    )
    resolve_level("isolated")
    thread.start()
    *_, worker, _, program = running(os.getpid())
    for pid in (worker, program):
        rights = status(pid)
        assert {rights[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
        assert rights["NoNewPrivs"] == "1"
        mounts = [
            line.split()[4:6] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        ]
        assert {point for point, flags in mounts if "ro" not in flags.split(",")} == {"/scratch"}
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    thread.join()


def test_the_scratch_folder_is_small() -> None:
    program = "for i in range(99):\n    open(f'{i}', 'wb').write(bytes(10**7))"
    full, next_one = run("isolated", program, "open('0', 'wb').write(bytes(10**7))")
    assert "No space left on device" in full.reason
    assert next_one == PASSED


def test_links_do_not_escape(tmp_path: Path) -> None:
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


def test_rights_and_namespaces_are_unavailable() -> None:
    program = LIBC + (
        "assert os.getuid() == 65534\n"
        "assert libc.unshare(0x10000000) == -1 and libc.chroot(b'/scratch') == -1\n"
        "assert libc.mount(b'none', b'/scratch', b'tmpfs', 0, None) == -1\n"
        "assert libc.setuid(0) == -1 and libc.ptrace(16, 1, 0, 0) == -1"
    )
    assert run("isolated", program) == [PASSED]


def test_concurrent_programs_do_not_see_each_other() -> None:
    meet = (
        "import os, time\nopen('/scratch/met', 'x').close()\ntime.sleep(0.2)\n"
        "assert len(os.listdir('/scratch')) == 2"
    )
    programs = [Program(meet, "")] * 4
    results = run_programs(programs, timeout_s=10, memory_mb=256, workers=2, level="isolated")
    assert results == [PASSED] * 4


OUTSIDE_THE_SANDBOX = ("__init__.py", "errors.py", "evaluation/__init__.py")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_users_other_than_root_can_isolate(tmp_path: Path) -> None:
    python = "/usr/bin/python3"  # other users may run this one
    version = subprocess.run(
        [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False
    )
    if version.returncode:
        pytest.skip(f"{python} is missing or older than 3.11")
    package = Path(__file__).parents[3] / "sft_lab"
    sandbox = sorted((package / "evaluation/sandbox").glob("*.py"))
    for path in (*(package / name for name in OUTSIDE_THE_SANDBOX), *sandbox):
        copy = tmp_path / path.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    script = (
        "from sft_lab.evaluation.sandbox.sandbox import *\n"
        "bomb = 'import _thread, time\\nwhile True: _thread.start_new_thread(time.sleep, (9,))'\n"
        "for level in ('limited', 'isolated'):\n"
        "    print(run_programs([Program('x = 1', 'assert x == 1'), Program(bomb, '')],"
        " timeout_s=5, memory_mb=256, workers=1, level=level))\n"
    )
    # pytest creates its folders for one user; with several processes there is one more level.
    made = Path(tempfile.gettempdir()).resolve()
    for folder in (tmp_path, *(f for f in tmp_path.resolve().parents if made in f.parents)):
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
