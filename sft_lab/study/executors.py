"""Run jobs on a Ray cluster, either embedded in this process or given by its address."""

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from sft_lab.errors import Interrupted, RequestError
from sft_lab.study.cluster_address import no_cluster
from sft_lab.study.design import Resources
from sft_lab.study.fork_server import run_in_fork
from sft_lab.study.job import Ended, Job
from sft_lab.study.run_job import run_job


class Executor(Protocol):
    """Runs jobs, as many at a time as the resources allow."""

    def submit(self, job: Job) -> None:
        """Queue a job; jobs start in the order of submission."""

    def wait(self, timeout_s: float) -> Sequence[Ended]:
        """Return the jobs that have ended since the last call; wait no longer than the timeout."""

    def stop(self) -> None:
        """Stop all running jobs, each after saving a checkpoint, and release the resources."""


_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default Ray gives its workers a lower priority than anything else on the machine.
    "RAY_worker_niceness": "0",
    # The default of a future Ray release; until it is set, Ray warns at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# What Ray does on Windows and macOS: it listens on loopback only. Ray reads it when it is imported,
# and resolves a loopback address that is passed to it to another one.
_OWN_CLUSTER = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Give Ray its settings while it starts; of ``_SETTINGS`` those of the user win."""
    before = {name: os.environ.get(name) for name in (*_SETTINGS, *settings)}
    os.environ.update({**_SETTINGS, **{n: v for n, v in before.items() if v}, **settings})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Raise ``Interrupted`` only after the block: Ray's compiled code would swallow it."""
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if caught:
        raise Interrupted(caught[0])


class RayExecutor:
    """Runs jobs as Ray tasks; the first job connects to Ray or starts it.

    Args:
        resources: Resources that each job needs.
        address: A running cluster, or ``auto`` for this machine's; by default, one is started for
            this process with all cores and GPUs of the machine. It listens on loopback only, and
            its folder is private and is removed with it.
        server: Address of a ``ForkServer`` that runs the jobs; by default each starts an
            interpreter.
    """

    def __init__(
        self, resources: Resources, address: str | None = None, server: str | None = None
    ) -> None:
        self.resources = resources
        self.address = address
        self.server = server
        self._ray: Any = None
        self._task: Any = None
        self._jobs: dict[Any, Job] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def _start(self) -> None:
        with _environment(_OWN_CLUSTER if self.address is None else {}):
            self._connect()

    def _connect(self) -> None:
        try:
            import ray
        except ImportError as fault:
            raise RequestError(
                "study runs on Ray, which is not installed: pip install 'sft_lab[study]'; "
                "or use --print and run the commands yourself."
            ) from fault
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        if self.address is None:
            # Ray lets everybody write to its own folder, so it is inside a private one.
            self._folder = tempfile.TemporaryDirectory(
                prefix="ray-", dir=os.environ.get("RAY_TMPDIR"), ignore_cleanup_errors=True
            )
            quiet |= {
                "include_dashboard": False,
                "object_store_memory": 100 * 1024**2,
                "_temp_dir": f"{self._folder.name}/r",
            }
        try:
            ray.init(address=self.address or "local", **quiet)
        except (OSError, RuntimeError, ValueError) as fault:
            if self.address is None:
                raise RequestError(
                    f"Ray does not start on this machine ({str(fault).splitlines()[0]}). If its "
                    "folder below TMPDIR has too long a path, set RAY_TMPDIR to a shorter one."
                ) from fault
            raise no_cluster(self.address, fault) from fault
        self._ray = ray
        if self.address is None:
            self._check_loopback()
        self._check_resources()
        resources = self.resources
        wanted: dict[str, Any] = {"num_cpus": resources.cpus, "max_retries": 0}
        if resources.gpus:
            wanted["num_gpus"] = resources.gpus
        if resources.memory_gb:
            wanted["memory"] = int(resources.memory_gb * 10**9)
        self._task = ray.remote(**wanted)(run_in_fork if self.server else run_job)

    def _check_loopback(self) -> None:
        found = {node["NodeManagerAddress"] for node in self._ray.nodes()}
        if found != {"127.0.0.1"}:
            self._shut_down()
            raise RequestError(
                f"Ray listens on {', '.join(found)}, not only on loopback, as it does where it was "
                "imported before. Start a cluster (ray start --head) and name it by --address."
            )

    def _shut_down(self) -> None:
        self._ray.shutdown()
        self._ray = self._task = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _check_resources(self) -> None:
        resources = self.resources
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {
            "CPU": resources.cpus,
            "GPU": resources.gpus,
            "memory": (resources.memory_gb or 0) * 10**9,
        }
        if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
            self._shut_down()
            raise RequestError(
                f"resources: a run needs CPU {resources.cpus}, GPU {resources.gpus} and "
                f"{resources.memory_gb or 0} GB of memory, which no machine of the cluster has; "
                "lower resources.cpus, resources.gpus or resources.memory_gb."
            )

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            RequestError: If Ray is not installed, no cluster answers, or none of its machines has
                the resources that a job needs.
        """
        if self._task is None:
            self._start()
        arguments = [self.server, job] if self.server else [job]
        with signals_held_back():
            self._jobs[self._task.options(name=job.name).remote(*arguments)] = job

    def wait(self, timeout_s: float) -> Sequence[Ended]:
        """Return the jobs that have ended since the last call."""
        if not self._jobs:
            time.sleep(timeout_s)
            return []
        refs = list(self._jobs)
        with signals_held_back():
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
            found: list[Ended] = []
            for ref in ended:
                try:
                    found.append(self._result(self._jobs[ref], ref))
                except self._ray.exceptions.LocalRayletDiedError:
                    return [*found, *self._give_up_ray()]
                del self._jobs[ref]
            return found

    def _give_up_ray(self) -> list[Ended]:
        """Return all jobs as lost after Ray has died on this machine; the next job starts it again.

        Ray itself reports queued jobs only, each time they are submitted, and no running one.
        """
        reason = "Ray's process on this machine has died"
        lost = [Ended(job.digest, None, None, reason) for job in self._jobs.values()]
        self._jobs.clear()
        self._shut_down()
        return lost

    def _result(self, job: Job, ref: Any) -> Ended:
        exceptions = self._ray.exceptions
        try:
            result: Ended = self._ray.get(ref)
            return result
        except exceptions.LocalRayletDiedError:
            raise
        except exceptions.RayTaskError as fault:
            # Raised by our own function: the store is gone, or a folder is not shared.
            return Ended(job.digest, 1, None, str(fault).strip().splitlines()[-1])
        except exceptions.RayError as fault:
            # The rest of Ray's message only points to its own logs.
            return Ended(job.digest, None, None, str(fault).strip().splitlines()[0].split(". ")[0])

    def stop(self) -> None:
        """Stop all running jobs and disconnect from Ray."""
        if self._ray is not None:
            with signals_held_back():
                self._stop()

    def _stop(self) -> None:
        for ref in self._jobs:
            # Acts like Ctrl-C in the task, which then stops its `fit` process and waits for it.
            self._ray.cancel(ref, force=False)
        if self._jobs:
            self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=150)
        self._shut_down()
