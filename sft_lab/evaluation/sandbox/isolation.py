"""Build the commands that isolate a worker: bubblewrap, or else util-linux.

Both create the same namespaces, bind the same paths and make the worker process 1, which drops its
capabilities before it reads a program (``worker.seal``).
"""

import json
import os
import shutil
import site
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sft_lab.evaluation.sandbox.worker import SCRATCH

Route = Literal["bubblewrap", "util-linux"]

TOOLS: dict[Route, tuple[str, ...]] = {
    "bubblewrap": ("bwrap",),
    "util-linux": ("setpriv", "unshare", "sh", "mkdir", "ln", "mount", "pivot_root", "umount"),
}
SCRATCH_MB = 64
NOBODY = "65534"

# Without site and without the run's paths, which include the project. Not -I, which ignores the
# fixed hash seed: without that, the order of a set decides some verdicts.
EXECUTABLE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
PYTHON = (EXECUTABLE, "-P", "-s", "-S", "-c")
START = (
    "import json, sys; root, *arguments = json.loads(sys.argv[1]); sys.path.insert(0, root); "
    "from sft_lab.evaluation.sandbox.worker import main; main(*arguments)"
)
ROOT = Path(__file__).parents[3]
WORKER_FILES = [
    *("sft_lab/__init__.py", "sft_lab/evaluation/__init__.py"),
    *(
        f"sft_lab/evaluation/sandbox/{part}.py"
        for part in ("__init__", "channel", "program", "seccomp", "worker")
    ),
]

# The interpreter may need these in addition to its own folders.
SYSTEM_PATHS = (
    *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
    *("/etc/ld.so.cache", "/usr/share/zoneinfo"),
)
DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")

# Creates a new root, swaps it for the machine's, and becomes the worker. The root grows under /sys,
# where nothing needs binding; the first tmpfs hides the mounts there. A bind includes submounts but
# not their flags, so each is made read-only, with the flags that the kernel holds locked.
# The old root moves to /scratch, over that folder; to find it there, umount needs /proc.
SCRIPT = """
set -eu
PATH=$1 umount=$2 size=$3 root=/sys/root
shift 3
mount -n -t tmpfs -o mode=755,nosuid,nodev tmpfs /sys
mkdir $root
mount -n -t tmpfs -o mode=755,nosuid,nodev tmpfs $root
mkdir $root/proc $root/scratch
while [ "$1" != -- ]; do
    mkdir -p "$root${3%/*}"
    if [ "$1" = --symlink ]; then
        ln -s "$2" "$root$3"
    else
        if [ -d "$2" ]; then mkdir "$root$3"; else : >> "$root$3"; fi
        mount -n --rbind "$2" "$root$3"
    fi
    shift 3
done
shift
while read -r _ _ _ _ point flags _; do
    case $point in
        $root | $root/*) ;;
        *) continue ;;
    esac
    case $point in
        *\\\\*) point=$(printf %b "$point") ;;
    esac
    mount -n -o "remount,bind,$flags,ro" none "$point"
done < /proc/self/mountinfo
mount -n -t tmpfs -o "mode=755,nosuid,nodev,size=$size" tmpfs $root/scratch
mount -n --rbind /proc $root/proc
cd $root
pivot_root . scratch
"/scratch$umount" -n -l /scratch /proc
cd /scratch
exec "$@"
"""


def find_tool(name: str) -> str | None:
    """Return the path of a program, or None if it is not on PATH."""
    # For users other than root, PATH often lacks the folder of pivot_root.
    sbin = shutil.which(name, path="/usr/sbin:/sbin") if name == "pivot_root" else None
    return shutil.which(name) or sbin


def limited_command(scratch: str) -> list[str]:
    """Return the command line of a limited worker."""
    return [*PYTHON, START, json.dumps([str(ROOT), scratch, _site_packages(), False])]


def isolated_command(route: Route) -> list[str]:
    """Return the command line of an isolated worker; all ``TOOLS`` of its route must exist."""
    site_packages = _site_packages()
    worker = [*PYTHON, START, json.dumps(["/worker", SCRATCH, site_packages, True])]
    build = {"bubblewrap": _bubblewrap, "util-linux": _util_linux}[route]
    return build([str(find_tool(name)) for name in TOOLS[route]], _binds(site_packages), worker)


def _bubblewrap(tools: Sequence[str], binds: Sequence[str], worker: Sequence[str]) -> list[str]:
    return [
        *tools,
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--uid", NOBODY, "--gid", NOBODY),
        # The worker needs this to seal itself.
        *("--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),
        # As process 1, the worker cannot be signalled by its programs, which end with it.
        *("--as-pid-1", "--new-session", "--die-with-parent"),
        *binds,
        *("--size", str(SCRATCH_MB << 20), "--tmpfs", SCRATCH, "--chdir", SCRATCH),
        *("--remount-ro", "/"),
        *worker,
    ]


def _util_linux(tools: Sequence[str], binds: Sequence[str], worker: Sequence[str]) -> list[str]:
    setpriv, unshare, sh, *_, umount = tools
    path = os.pathsep.join(dict.fromkeys(os.path.dirname(tool) for tool in tools))
    return [
        *(setpriv, "--no-new-privs", "--pdeathsig", "KILL"),
        *(unshare, "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--keep-caps"),
        *("--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"),
        *(sh, "-c", SCRIPT, "sh", path, os.path.realpath(umount), str(SCRATCH_MB << 20)),
        *(*binds, "--", *worker),
    ]


def _site_packages() -> list[str]:
    """Return the folders of installed packages that this interpreter uses."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    folders = [*user, *site.getsitepackages()]
    return [os.path.realpath(folder) for folder in folders if os.path.isdir(folder)]


def _binds(site_packages: Sequence[str]) -> list[str]:
    """Return bwrap's arguments for all that a worker can read, never a parent of needed folders.

    A virtual environment is often inside the project, and an interpreter in the home folder.
    """
    base = os.path.realpath(sys.base_prefix)
    own = [EXECUTABLE, os.path.realpath(sysconfig.get_path("stdlib"))]
    own += [os.path.join(base, name) for name in ("lib", "lib64")]
    arguments = []
    bound: list[str] = []
    for path in sorted({*SYSTEM_PATHS, *own, *site_packages}):  # a folder before its contents
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path) and not path.startswith(tuple(bound)):
            arguments += ["--ro-bind", path, path]
            bound.append(os.path.join(path, ""))
    for name in WORKER_FILES:
        arguments += ["--ro-bind", str(ROOT / name), f"/worker/{name}"]
    for device in DEVICES:
        arguments += ["--dev-bind", device, device]
    return arguments
