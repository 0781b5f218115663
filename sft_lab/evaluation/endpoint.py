"""Check an OpenAI-compatible endpoint's address and replies, and explain its errors."""

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from typing_extensions import override

from sft_lab.errors import RequestError, has_credentials


def check_base_url(base_url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        RequestError: If it is malformed, or includes a key or the path of a request.
    """
    if has_credentials(base_url, needs_scheme=False):
        raise RequestError(
            "base_url must not include a user name, a password or a key; "
            "give the key by api_key_env."
        )
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RequestError(
            f"base_url must be http(s)://HOST[:PORT]/PATH, got {base_url!r}; "
            "it usually ends in /v1."
        )
    if url.query:
        raise RequestError("base_url must not include a query; give the key by api_key_env.")
    if url.path.rstrip("/").endswith("/completions"):
        raise RequestError(f"base_url must end before /chat/completions, got {base_url!r}.")


def check_api_key_env(api_key_env: str | None) -> None:
    """Check the name of the environment variable that holds a key, if one is given.

    Raises:
        RequestError: If it is not a valid name.
    """
    if api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
        # The value may be the key itself, so it is not shown.
        raise RequestError(
            "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY; "
            "keep the key itself out of the config."
        )


def read_api_key(api_key_env: str | None, base_url: str) -> str | None:
    """Return the key of an endpoint, or None if it needs none.

    Raises:
        RequestError: If the variable is not set, or its value cannot be a key.
    """
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "")
    if not key:
        raise RequestError(
            f"api_key_env: the environment variable {api_key_env} is not set; export the "
            f"API key of {base_url} in it."
        )
    if not re.fullmatch(r"[!-~]+", key):
        # The HTTP library would show the whole key in its error.
        raise RequestError(
            f"api_key_env: {api_key_env} holds white space or characters that no key has; "
            "export it again, without a line break."
        )
    return key


def import_openai() -> Any:
    """Import the SDK, which takes a second, only when a judge is used.

    Raises:
        RequestError: If it is not installed.
    """
    try:
        import openai
    except ImportError as fault:
        raise RequestError(
            "A judge needs the openai package: pip install 'sft_lab[judge]'."
        ) from fault
    return openai


_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")
MAX_REPLY_BYTES = 16 * 2**20
"""Longest reply that is read, in bytes, decompressed."""


async def read_reply(response: httpx2.Response) -> bytes:
    """Read a reply that was opened as a stream, decompressed.

    Raises:
        httpx2.RemoteProtocolError: If it is longer than any answer: it would fill the memory.
    """
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_REPLY_BYTES:
            await response.aclose()
            raise httpx2.RemoteProtocolError(
                f"the reply is longer than {MAX_REPLY_BYTES / 2**20:.0f} MiB"
            )
    return bytes(body)


class HttpClient(httpx2.AsyncClient):
    """Fail slow, endless and malformed replies, so that the SDK retries them.

    The SDK's time-out restarts with every byte that arrives, so a slow reply never times out; and
    it returns any reply with status 200, which gateways also send with an error page. Redirects are
    not followed: questions and keys go to the address of the config alone.

    Args:
        timeout_s: Longest wait for a whole reply, in seconds.
        concurrency: Maximum number of open connections.
    """

    def __init__(self, timeout_s: float, concurrency: int) -> None:
        limits = httpx2.Limits(max_connections=concurrency)
        super().__init__(timeout=timeout_s, limits=limits)
        self._timeout_s = timeout_s

    @override
    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        try:
            with anyio.fail_after(self._timeout_s):
                response = await super().send(request, **{**kwargs, "stream": True})
                try:
                    content = await read_reply(response)
                finally:
                    await response.aclose()
        except TimeoutError as fault:
            raise httpx2.ReadTimeout("the reply took too long", request=request) from fault
        if request.method == "POST" and response.is_success:
            try:
                answer_of(content)
            except ValueError as fault:
                raise httpx2.RemoteProtocolError(str(fault), request=request) from fault
        headers = [h for h in response.headers.multi_items() if h[0] not in _OF_THE_WIRE]
        return httpx2.Response(
            response.status_code, headers=headers, content=content, request=request
        )


def answer_of(body: bytes) -> str:
    """Return the text of a chat completion; empty if it was cut or withheld before its first word.

    Raises:
        ValueError: If the body is not a chat completion, or is empty for another reason.
    """
    shown = body.decode(errors="replace")
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"the reply is not JSON, got {shown!r}") from fault
    try:
        choice = reply["choices"][0]
        texts = [choice["message"].get(key) for key in ("content", "refusal")]
        reason = choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError) as fault:
        raise ValueError(f"the reply has no choices[0].message, got {shown!r}") from fault
    for text in texts:
        if isinstance(text, str) and text.strip():
            return text.encode("utf-8", "replace").decode()  # half a surrogate pair fits no file
    if reason in ("length", "content_filter"):
        return ""  # another try would end the same way, and cost as much
    raise ValueError(f"the reply is empty, with finish_reason {reason!r}")


def reason_and_fix(fault: Exception, timeout_s: float, api_key_env: str | None) -> tuple[str, str]:
    """Return the reason of an SDK error, in the server's words, and the fix.

    Args:
        fault: An ``openai.APIError``.
        timeout_s: The time limit, in seconds.
        api_key_env: Environment variable with the key, if any.
    """
    openai = import_openai()
    if isinstance(fault, openai.APITimeoutError):
        return f"no answer within {timeout_s:g} s", "Check the server, or raise timeout_s."
    if isinstance(fault, openai.APIConnectionError):
        return str(fault.__cause__ or fault), "Check that it runs, and base_url."
    match getattr(fault, "status_code", 0):
        case status if 300 <= status < 400:
            fix = "Redirects are not followed; set base_url to the address that answers."
        case 401 | 403 if api_key_env:
            fix = f"Correct the key in the environment variable {api_key_env}."
        case 401 | 403:
            fix = "Name the environment variable that holds its key: api_key_env."
        case 404:
            fix = "Correct base_url, which usually ends in /v1, or model."
        case 429:
            fix = "Lower concurrency, or raise the limits of the account."
        case status if 400 <= status < 500:
            fix = "Correct temperature, max_tokens (null leaves either out) or extra_body."
        case _:
            fix = "Check the server."
    return str(fault), fix
