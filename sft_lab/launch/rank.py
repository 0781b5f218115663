"""Run one rank of a run, in a process that ``processes`` has started."""

import os
import pickle
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

from sft_lab.errors import Interrupted, RequestError, RunError, handle_signals, interrupt
from sft_lab.runs.accidents import explain, is_of_ranks
from sft_lab.terminal import silence


@dataclass(frozen=True)
class Outcome:
    """How a rank ended.

    Attributes:
        run_id: The run, if the rank has done its part of it.
        fault: What ended the rank instead, as an exception that can be sent.
        signal: The signal that ended it, if one did.
        is_echo: Whether that only says that another rank is lost.
    """

    run_id: str | None = None
    fault: BaseException | None = None
    signal: int | None = None
    is_echo: bool = False


def outcome_of(fault: BaseException) -> Outcome:
    """Return the outcome of a rank that an exception has ended."""
    notes = getattr(fault, "__notes__", [])
    if isinstance(fault, Interrupted | KeyboardInterrupt):
        number = fault.exit_code - 128 if isinstance(fault, Interrupted) else signal.SIGINT
        return Outcome(signal=number, fault=_noted(RunError(str(fault)), notes))
    if isinstance(fault, RequestError):
        return Outcome(fault=_noted(fault, notes))
    line = explain(fault) or f"{type(fault).__name__}: {str(fault).splitlines()[0][:500]}"
    line = f"rank {os.environ['RANK']}: {line}"
    return Outcome(fault=_noted(RunError(line), notes), is_echo=is_of_ranks(fault))


def _noted(fault: Exception, notes: list[str]) -> Exception:
    fault.__notes__ = list(notes)
    return fault


def main() -> int:
    """Run the part of a rank and report how it ended."""
    sent = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    handle_signals(interrupt)
    silence()
    try:
        outcome = Outcome(run_id=_run(sent["config"]))
    except BaseException as fault:
        outcome = outcome_of(fault)
        if not outcome.is_echo and explain(fault) is None and not isinstance(fault, RequestError):
            traceback.print_exc()
    with os.fdopen(sent["report"], "wb") as report:
        pickle.dump(outcome, report)
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome.fault is not None:
        os._exit(1)  # exit handlers of the libraries would wait for the other ranks
    return 0


def _run(config: Any) -> str:
    from sft_lab.launch.run import fit, score

    return fit(config) if config.command == "fit" else score(config)


def _die_with_parent() -> None:
    """End this rank when the process that started it is gone, whatever it waits for."""
    os.read(sys.stdin.fileno(), 1)  # nothing comes but the end
    os.kill(os.getpid(), signal.SIGKILL)
