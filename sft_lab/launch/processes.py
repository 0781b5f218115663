"""Start the ranks of a run on this machine, watch them, and end all when one fails."""

import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from torch.distributed import TCPStore

from sft_lab.distributed import timeout_s
from sft_lab.errors import Interrupted, RunError, handle_signals
from sft_lab.launch.rank import Outcome
from sft_lab.launch.run_config import RunConfig

_PROGRAM = "import sys; from sft_lab.launch.rank import main; sys.exit(main())"
_AFTER_FAULT_S = 10.0
_AFTER_SIGNAL_S = 120.0
_POLL_S = 0.2


def run_ranks(config: RunConfig, num_ranks: int) -> str:
    """Run a command in several processes, and return the id of its run.

    The first error of any rank ends all; what others say of a lost connection is left out. No
    process is left when this one returns, raises or is killed.

    Args:
        config: The parsed config.
        num_ranks: Number of ranks, all on this machine.

    Raises:
        RequestError: If the request was wrong.
        RunError: If a rank failed.
        Interrupted: If a signal ended the run.
    """
    timeout_s()  # wrong values before anything starts
    # Ranks find each other by this process, on a port that the system has chosen.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with _Ranks(config, num_ranks, store.port) as ranks:
        outcomes = ranks.wait()
    return _result(outcomes)


def _result(outcomes: Mapping[int, Outcome]) -> str:
    faults = {rank: found for rank, found in outcomes.items() if found.fault is not None}
    own = [found for found in faults.values() if not found.is_echo]
    if not faults:
        return str(outcomes[0].run_id)
    stopped = next((found.signal for found in faults.values() if found.signal is not None), None)
    failed = next((found for found in own if found.signal is None), None)
    notes = getattr((outcomes[0].fault if 0 in outcomes else None), "__notes__", [])
    fault: BaseException
    if failed is not None:
        assert failed.fault is not None
        fault = failed.fault
    elif stopped is not None:
        fault = Interrupted(stopped)
    else:
        fault = next(iter(faults.values())).fault or RunError("a rank was lost")
    fault.__notes__ = list(notes)
    raise fault


class _Ranks:
    """The processes of one run."""

    def __init__(self, config: RunConfig, num_ranks: int, port: int) -> None:
        self.config, self.port, self.num_ranks = config, port, num_ranks
        self.processes: list[subprocess.Popen[bytes]] = []
        self.reports: list[int] = []
        self.outcomes: dict[int, Outcome] = {}
        self.signal: int | None = None
        self.ended_by_us: set[int] = set()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_Ranks":
        self._handlers = handle_signals(self._forward)
        try:
            for rank in range(self.num_ranks):
                self._start(rank)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *fault: object) -> None:
        self._kill()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _start(self, rank: int) -> None:
        read, write = os.pipe()
        cores = os.cpu_count() or 1
        environment = {
            "OMP_NUM_THREADS": str(max(1, cores // self.num_ranks)),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank opens a store of its own
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            env=environment,
            pass_fds=[write],
            start_new_session=True,  # Ctrl-C reaches ranks once, through this process
        )
        os.close(write)
        self.processes.append(process)
        self.reports.append(read)
        assert process.stdin is not None
        # Kept open: a rank ends when it closes.
        with suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps({"config": self.config, "report": write}))
            process.stdin.flush()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> dict[int, Outcome]:
        """Wait until all ranks have ended, and return their outcomes in the order of ending."""
        since: float | None = None
        sent: list[int] = []
        while any(process.poll() is None for process in self.processes):
            self._collect()
            if since is None and any(found.fault for found in self.outcomes.values()):
                since = time.monotonic()
            if since is not None:
                grace = _AFTER_SIGNAL_S if self._is_stopping() else _AFTER_FAULT_S
                late = time.monotonic() - since
                for number, after in ((signal.SIGTERM, grace), (signal.SIGKILL, 2 * grace)):
                    if late > after and number not in sent:
                        sent.append(number)
                        self._mark_late()
                        self._send(number)
            time.sleep(_POLL_S)
        self._collect()
        return self.outcomes

    def _is_stopping(self) -> bool:
        return self.signal is not None or any(found.signal for found in self.outcomes.values())

    def _mark_late(self) -> None:
        """Note which ranks had to be ended; if all others only lost them, they have hung."""
        alive = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        only_echoes = all(found.is_echo for found in self.outcomes.values() if found.fault)
        if only_echoes and not self.ended_by_us:
            names = " and ".join(f"rank {rank}" for rank in alive)
            text = f"{names} did not answer the other ranks, which waited {timeout_s():g} s"
            self.outcomes |= {rank: Outcome(fault=RunError(text)) for rank in alive}
        self.ended_by_us.update(alive)

    def _collect(self) -> None:
        for rank, process in enumerate(self.processes):
            if rank in self.outcomes or process.poll() is None:
                continue
            outcome = self._read(rank)
            if outcome is None:
                outcome = Outcome(fault=RunError(_death(rank, process.returncode)))
            if rank in self.ended_by_us:
                outcome = replace(outcome, is_echo=True)
            self.outcomes[rank] = outcome

    def _read(self, rank: int) -> Outcome | None:
        with selectors.DefaultSelector() as ready:
            ready.register(self.reports[rank], selectors.EVENT_READ)
            if not ready.select(timeout=0):
                return None
        try:
            with os.fdopen(os.dup(self.reports[rank]), "rb") as report:
                found: Outcome = pickle.load(report)
        except (EOFError, pickle.UnpicklingError):
            return None
        return found

    def _kill(self) -> None:
        """End whatever is left of the ranks, their loaders and sandboxes included."""
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for report in self.reports:
            os.close(report)
        self.reports = []


def _death(rank: int, code: int) -> str:
    if code >= 0:
        return f"rank {rank} ended with exit code {code}."
    name = signal.Signals(-code).name
    out_of_memory = ", as a machine out of memory does" if -code == signal.SIGKILL else ""
    return f"rank {rank} was killed by {name}{out_of_memory}."
