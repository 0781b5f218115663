"""The command ``ui``: MLflow's page of a store, and the address of a run on it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

from sft_lab.commands.arguments import add_tracking_uri, command_parser, number
from sft_lab.config.ranges import Port
from sft_lab.errors import RequestError
from sft_lab.runs.store import RunStore
from sft_lab.terminal import visible

_VIEW = "?workflowType=machine_learning"
"""Without it MLflow shows what it has for traces of chats, around the same run."""

_SHARED = "sft_lab"
"""Key of the view that ``_share_columns`` adds to an experiment."""


def main(arguments: list[str]) -> int:
    """Print the run's address, and serve the page until it is stopped."""
    parser = command_parser("ui")
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="id, beginning of one, or name; default: the newest that has finished",
    )
    parser.add_argument(
        "--port", type=number(Port), default=5000, metavar="N", help="default: %(default)s"
    )
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)

    from sft_lab.runs.store_uri import absolute, local_file

    store = RunStore(options.tracking_uri)
    runs = [store.find(options.run)] if options.run else store.runs()
    if not runs:
        raise RequestError(
            f"{options.tracking_uri} holds no run yet; train one, for instance "
            "sft-lab fit --config configs/world/dmt.yaml."
        )
    finished = (run for run in runs if run.info.status == "FINISHED")
    info = next(finished, runs[0]).info
    _share_columns(store, info.experiment_id)
    file = local_file(options.tracking_uri)
    here = f"http://127.0.0.1:{options.port}"
    server = options.tracking_uri.rstrip("/") if file is None else here
    listed = f"{server}/#/experiments/{info.experiment_id}/runs"
    print(f"{visible(info.run_name)}: {listed}/{info.run_id}{_VIEW}")
    print(f"all runs: {listed}{_VIEW}&viewStateShareKey={_SHARED}", flush=True)
    if file is None:
        return 0
    _check_free(options.port)
    # Its queue for judges of chat logs keeps seven processes busy, and nothing here uses it.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    uri = absolute(options.tracking_uri)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(options.port)]
    command += ["--uvicorn-opts", "--log-level warning", "--backend-store-uri", uri]
    # Locations of artifacts are relative to the folder that holds the store's.
    home = file.absolute().parent.parent
    # In a session of its own, so that it and its workers end together, however this is stopped.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with subprocess.Popen(command, cwd=home, env=quiet, start_new_session=True) as served:
        try:
            return served.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(served.pid, signal.SIGTERM)


def _share_columns(store: RunStore, experiment: str) -> None:
    """Add a view to an experiment whose list of runs shows what they have forgotten and score.

    MLflow's own list has no scores. A view is a tag of the experiment that its page reads.
    """
    runs = [run for run in store.runs() if run.info.experiment_id == experiment]
    metrics = sorted({key for run in runs for key in run.data.metrics})
    columns = [
        f"metrics.`{key}`"
        for kind in ("forgetting/", "ability/")
        for key in metrics
        if key.startswith(kind)
    ]
    view = json.dumps({"selectedColumns": columns})
    store.client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{_SHARED}", view)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as fault:
            raise RequestError(f"--port {port}: {fault.strerror}; choose another.") from fault
