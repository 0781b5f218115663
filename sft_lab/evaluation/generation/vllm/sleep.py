"""Wake a vLLM server for an evaluation, and let it sleep while the model trains."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.vllm.protocol import SLEEP, WAKE
from sft_lab.evaluation.generation.vllm.server import (
    VllmError,
    VllmRefusalError,
    VllmServer,
    ask_server,
)

log = logging.getLogger(__name__)


@contextmanager
def awake(server: VllmServer, *, max_tries: int | None = None) -> Iterator[None]:
    """Wake a server for the duration of a ``with`` block, if it sleeps between evaluations.

    Args:
        server: The server; with ``sleep: false`` nothing is sent.
        max_tries: Maximum number of tries to wake it; the server's by default.

    Raises:
        RequestError: If it was not started in vLLM's development mode, which offers sleep.
        VllmError: If it does not answer.
    """
    if not server.sleep:
        yield
        return
    try:
        ask_server(server, WAKE, {}, bytes, max_tries=max_tries)
    except VllmRefusalError as fault:
        if fault.status not in (404, 405):
            raise
        raise RequestError(
            f"{server} does not offer sleep; start it with VLLM_SERVER_DEV_MODE=1 in its "
            "environment and --enable-sleep-mode, or set evaluation.vllm.sleep to false."
        ) from None
    try:
        yield
    finally:
        try:
            ask_server(server, SLEEP, {}, bytes, max_tries=1)
        except VllmError as fault:
            log.warning("%s does not sleep, and keeps its device's memory: %s", server, fault)
