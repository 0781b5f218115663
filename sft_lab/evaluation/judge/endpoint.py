"""An OpenAI-compatible endpoint: its address, what counts as a reply, and what its faults mean."""

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from typing_extensions import override

from sft_lab.errors import RequestError


def check_base_url(base_url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        RequestError: If it is none, or holds what belongs elsewhere.
    """
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RequestError(
            f"base_url must be http(s)://HOST[:PORT]/PATH, got {base_url!r}; "
            "most often it ends in /v1."
        )
    if url.username or url.password or url.query:
        raise RequestError(
            "base_url must hold neither a name, a password nor a query; give the key by "
            "api_key_env."
        )
    if url.path.rstrip("/").endswith("/completions"):
        raise RequestError(f"base_url must end before /chat/completions, got {base_url!r}.")


def check_api_key_env(api_key_env: str | None) -> None:
    """Check the name of the environment variable that holds a key, where there is one.

    Raises:
        RequestError: If it is no such name.
    """
    if api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
        # The value may be the key itself, so it is not shown.
        raise RequestError(
            "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY, "
            "which holds the key; a config never does."
        )


def read_api_key(api_key_env: str | None, base_url: str) -> str | None:
    """Return the key of an endpoint, None where it needs none.

    Raises:
        RequestError: If the variable is not set, or what it holds is no key.
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
            f"api_key_env: {api_key_env} holds white space or letters that no key has; "
            "export it again, without a line break."
        )
    return key


def import_openai() -> Any:
    """Return the SDK, which takes a second to import; only those who ask a judge need it.

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


class HttpClient(httpx2.AsyncClient):
    """Makes failed tries, which the SDK repeats, of what it would wait for or take for an answer.

    The SDK's time-out is one of silence, which never comes while a byte arrives now and then; and
    it returns whatever came with status 200, which gateways also give to an error page.

    Args:
        timeout_s: Longest wait for a whole reply, in seconds.
        concurrency: Connections that are open at a time.
    """

    def __init__(self, timeout_s: float, concurrency: int) -> None:
        limits = httpx2.Limits(max_connections=concurrency)
        super().__init__(timeout=timeout_s, limits=limits, follow_redirects=True)
        self._timeout_s = timeout_s

    @override
    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        try:
            with anyio.fail_after(self._timeout_s):
                response = await super().send(request, **kwargs)
                await response.aread()
        except TimeoutError as fault:
            raise httpx2.ReadTimeout("the reply took too long", request=request) from fault
        if request.method == "POST" and response.is_success:
            try:
                answer_of(response.content)
            except ValueError as fault:
                raise httpx2.RemoteProtocolError(str(fault), request=request) from fault
        return response


def answer_of(body: bytes) -> str:
    """Return the text of a chat completion; empty if it was cut or withheld before its first word.

    Raises:
        ValueError: If the body is no chat completion, or an empty one for no such reason.
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
            return text
    if reason in ("length", "content_filter"):
        return ""  # the next try would end alike, and cost as much
    raise ValueError(f"the reply is empty, with finish_reason {reason!r}")


def reason_and_fix(fault: Exception, timeout_s: float, api_key_env: str | None) -> tuple[str, str]:
    """Return what a fault of the SDK says, as the server worded it, and what mends it.

    Args:
        fault: An ``openai.APIError``.
        timeout_s: The longest wait that was allowed, in seconds.
        api_key_env: Environment variable with the key, if there is one.
    """
    openai = import_openai()
    if isinstance(fault, openai.APITimeoutError):
        return f"no answer within {timeout_s:g} s", "See whether it is well, or raise timeout_s."
    if isinstance(fault, openai.APIConnectionError):
        return str(fault.__cause__ or fault), "See whether it runs, and whether base_url is right."
    match getattr(fault, "status_code", 0):
        case 401 | 403 if api_key_env:
            fix = f"Correct the key in the environment variable {api_key_env}."
        case 401 | 403:
            fix = "Name the environment variable that holds its key: api_key_env."
        case 404:
            fix = "Correct base_url, which most often ends in /v1, or model."
        case 429:
            fix = "Lower concurrency, or raise the limits of the account."
        case status if 400 <= status < 500:
            fix = "Correct temperature, max_tokens (null leaves either out) or extra_body."
        case _:
            fix = "See whether it is well."
    return str(fault), fix
