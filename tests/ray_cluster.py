"""Start a Ray cluster of two nodes on loopback, each a separate ``ray start`` process."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Cluster:
    """A head and a worker with as many cores each; the worker can be killed."""

    def __init__(self, folder: Path, environment: dict[str, str], num_cores: int = 1) -> None:
        self.folder, self.num_cores = folder, num_cores
        # A lost node is found within three seconds, by default within a quarter of a minute.
        self.environment = {
            **environment,
            "RAY_AUTH_MODE": "disabled",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
        }
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.partition(":")[2]
        self.head = self._start("head", "--head", f"--port={port}", "--include-dashboard=false")
        self.worker = self._start("worker", f"--address={self.address}")
        for name in ("head", "worker"):  # a busy machine takes half a minute, a study less
            self._wait_for(name)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [
                    *RAY,
                    "start",
                    *arguments,
                    f"--num-cpus={self.num_cores}",
                    "--object-store-memory=100000000",
                    "--disable-usage-stats",
                    "--block",
                ],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        deadline = time.monotonic() + 120
        while "Ray runtime started." not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def kill_worker(self) -> None:
        """Kill the worker and all its descendants with SIGKILL, like a power cut."""
        kill_tree(self.worker)

    def stop(self) -> None:
        kill_tree(self.worker)
        kill_tree(self.head)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    for found in [root, *root.children(recursive=True)]:
        try:
            found.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
