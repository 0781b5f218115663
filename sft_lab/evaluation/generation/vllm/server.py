"""A vLLM server: its address, and requests with retries."""

import json
import logging
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal
from typing_extensions import override

from sft_lab.config.ranges import PositiveFloat, PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.endpoint import check_api_key_env, check_base_url, read_api_key, read_reply

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE_S = 8.0
_LONGEST_ASKED_PAUSE_S = 120.0


class VllmError(RuntimeError):
    """The server has not answered after all tries."""


class VllmRefusalError(VllmError):
    """The server has answered and refuses the request.

    Args:
        status: Its HTTP status.
        message: Its error message.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}, {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True)
class VllmServer:
    """The server that answers instead of this process.

    Args:
        base_url: Its address, with or without ``/v1``.
        model: The name under which it lists the base; needed if it differs from ``model.base``.
        adapter_dir: Folder that it reads adapters from, at the same path as here; the system's
            temporary folder by default. Adapters are removed after each evaluation.
        api_key_env: Environment variable with the key, if it was started with one.
        timeout_s: Longest wait for an answer per try, in seconds.
        max_tries: Maximum number of tries per answer.
        sleep: Whether it frees its device's memory between evaluations, so that it can share the
            device of the training; needs a server started with ``VLLM_SERVER_DEV_MODE=1`` and
            ``--enable-sleep-mode``.

    Raises:
        RequestError: If a value is out of range.
    """

    base_url: str = "http://127.0.0.1:8000"
    model: str | None = None
    adapter_dir: Path | None = None
    api_key_env: str | None = None
    timeout_s: PositiveFloat = 600.0
    max_tries: PositiveInt = 5
    sleep: bool = False

    def __post_init__(self) -> None:
        try:
            check_base_url(self.base_url)
            check_api_key_env(self.api_key_env)
        except RequestError as fault:
            raise RequestError(f"evaluation.vllm.{fault}") from fault

    @override
    def __str__(self) -> str:
        return f"evaluation.vllm: the server at {self.root}"

    @property
    def root(self) -> str:
        """The address without ``/v1``."""
        return self.base_url.rstrip("/").removesuffix("/v1")


class VllmClient:
    """Sends requests to a server, for the duration of a ``with`` block.

    A try that fails for a transient reason (429, 5xx, a time-out, a dropped connection, an invalid
    reply) is repeated after the server's ``Retry-After`` or with exponential back-off.

    Args:
        server: The server.
        concurrency: Maximum number of open connections.

    Raises:
        RequestError: If the key is missing.
    """

    def __init__(self, server: VllmServer, concurrency: int) -> None:
        self.server = server
        try:
            self._key = read_api_key(server.api_key_env, server.root)
        except RequestError as fault:
            raise RequestError(f"evaluation.vllm.{fault}") from fault
        self._http = httpx2.AsyncClient(
            base_url=server.root,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=concurrency),
            timeout=None,  # of each whole try, below
        )

    async def __aenter__(self) -> "VllmClient":
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | None,
        parse: Callable[[bytes], T],
        *,
        max_tries: int | None = None,
        timeout_s: float | None = None,
        refusals: Collection[int] = (),
    ) -> T:
        """POST a body, or GET without one, and return the parsed reply.

        Args:
            path: Path below the address.
            body: What to send, as JSON.
            parse: Parses a reply; raises ValueError if it is invalid.
            max_tries: Maximum number of tries; the server's by default.
            timeout_s: Longest wait per try, in seconds; the server's by default.
            refusals: Statuses from 500 on that count as refusals, not as transient failures.

        Raises:
            VllmRefusalError: If the server refuses.
            VllmError: If there is no answer after all tries.
        """
        tries = max_tries or self.server.max_tries
        timeout_s = timeout_s or self.server.timeout_s
        for number in range(1, tries + 1):
            pause_s = min(0.5 * 2 ** (number - 1), _LONGEST_PAUSE_S) * random.uniform(0.75, 1)
            try:
                with anyio.fail_after(timeout_s):
                    verb = "GET" if body is None else "POST"
                    async with self._http.stream(verb, path, json=body) as reply:
                        content = await read_reply(reply)
                if reply.is_success:
                    return parse(content)
                status, message = reply.status_code, self._message(reply, content)
                if status in refusals or (status != 429 and status < 500):
                    raise VllmRefusalError(status, message)
                reason = f"HTTP {status}, {message}"
                pause_s = _asked_pause(reply) or pause_s
            except TimeoutError:
                reason = f"no answer within {timeout_s:g} s"
            except (httpx2.RequestError, ValueError) as fault:
                reason = str(fault) or type(fault).__name__
            if number < tries:
                log.warning("vLLM at %s, %s: %s; asked again", self.server.root, path, reason)
                await anyio.sleep(pause_s)
        raise VllmError(reason)

    def _message(self, reply: httpx2.Response, content: bytes) -> str:
        """Return the message of a refusal, without the key, which a server may echo."""
        try:
            body = json.loads(content)
            error = body.get("error", body)
            message = str(error.get("message") or error.get("detail") or body)
        except (ValueError, AttributeError, RecursionError):
            message = content[:10_000].decode(errors="replace")
        message = " ".join(message.split()).replace(self._key or "\0", "[the key]")
        return message[:300].rstrip(".") or reply.reason_phrase


def _asked_pause(reply: httpx2.Response) -> float | None:
    """Return the pause that a server asks for, in seconds; None if it gives none in seconds."""
    try:
        return min(max(float(reply.headers["Retry-After"]), 0.0), _LONGEST_ASKED_PAUSE_S)
    except (KeyError, ValueError):
        return None


def ask_server(
    server: VllmServer,
    path: str,
    body: dict[str, Any] | None,
    parse: Callable[[bytes], T],
    **settings: Any,
) -> T:
    """Send one request and wait for its reply; see ``VllmClient.ask``."""

    async def ask() -> T:
        async with VllmClient(server, concurrency=1) as client:
            return await client.ask(path, body, parse, **settings)

    # An event loop in a thread of its own also works in a notebook, and ends with Ctrl-C.
    with start_blocking_portal() as portal:
        return portal.call(ask)
