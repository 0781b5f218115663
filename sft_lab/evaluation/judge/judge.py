"""Ask a judge: a language model at an OpenAI-compatible endpoint, once for each judgement."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from sft_lab.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.endpoint import (
    HttpClient,
    answer_of,
    check_api_key_env,
    check_base_url,
    import_openai,
    read_api_key,
    reason_and_fix,
)
from sft_lab.evaluation.judge.store import JudgementStore
from sft_lab.paths import cache_dir
from sft_lab.terminal import counted

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]
"""``role`` and ``content`` of each message of one request."""

_OWN_KEYS = {"model", "messages", "n", "stream"}
_TRIAL: Messages = ({"role": "user", "content": "Reply with the word yes."},)


class JudgeError(RuntimeError):
    """Report judgements missing after all tries; those received are kept."""


class Judge:
    """Ask a judge model, several requests at a time, and keep every answer on disk as it arrives.

    Answers are stored by model, messages and parameters, not by endpoint: give every model its own
    name, even on a server that accepts any. The SDK retries a try that fails for a transient reason
    (429, 5xx, a time-out, a dropped connection, a reply that is not a completion), after the
    server's ``Retry-After`` (up to 120 s; for longer, it gives up) or with exponential back-off and
    jitter, 0.5 to 8 s. Other failures are final.

    Args:
        model: Name of the model, as the endpoint lists it.
        base_url: The endpoint: ``https://api.openai.com/v1``, ``http://127.0.0.1:8000/v1``.
        api_key_env: Environment variable that holds the API key; local servers need none.
        temperature: Sampling temperature; ``null`` leaves it out, for models that refuse it.
        max_tokens: Longest answer, in tokens; ``null`` leaves it out.
        extra_body: Further keys of the request, such as ``max_completion_tokens`` or ``seed``.
        concurrency: Maximum number of open requests.
        max_tries: Maximum number of tries for each answer.
        timeout_s: Time limit of each try, for the whole answer, in seconds.
        cache: Folder of the answers; by default ``judgements`` in the lab's cache.

    Raises:
        RequestError: If an argument is out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None = None,
        temperature: NonNegativeFloat | None = 0.0,
        max_tokens: PositiveInt | None = 2048,
        extra_body: dict[str, Any] | None = None,
        concurrency: PositiveInt = 16,
        max_tries: PositiveInt = 10,
        timeout_s: PositiveFloat = 120.0,
        cache: Path | None = None,
    ) -> None:
        if not model:
            raise RequestError("model must name the judge model, got ''.")
        check_base_url(base_url)
        check_api_key_env(api_key_env)
        if clash := sorted(_OWN_KEYS & set(extra_body or {})):
            raise RequestError(f"extra_body: the judge sets {clash[0]!r} itself; remove it.")
        self.model = model
        self.base_url = base_url.rstrip("/")
        self.api_key_env = api_key_env
        self.parameters: dict[str, Any] = dict(extra_body or {})
        if temperature is not None:
            self.parameters["temperature"] = float(temperature)  # 0 and 0.0 are one request
        if max_tokens is not None:
            self.parameters["max_tokens"] = max_tokens
        self.concurrency = concurrency
        self.max_tries = max_tries
        self.timeout_s = timeout_s
        self.store = JudgementStore(cache or cache_dir() / "judgements")

    def check(self, timeout_s: float = 5.0) -> None:
        """Check that the judge is usable: key, cache folder, endpoint, model, parameters.

        Requests the list of models and then the answer to a trial question of a few tokens, since
        only that shows whether the endpoint accepts the parameters and the account has credit.

        Args:
            timeout_s: Time limit of either, in seconds. A trial answer that takes longer passes: it
                was not refused.

        Raises:
            RequestError: If it is not; names the argument and the fix.
        """
        import_openai()
        self._api_key()
        self.store.check()
        with start_blocking_portal() as portal:
            portal.call(self._check, timeout_s)

    def ask(self, conversations: Sequence[Messages]) -> list[str]:
        """Return the judge's answer to each conversation, in order; see ``ask_several``."""
        return [answer for [answer] in self.ask_several(conversations, 1)]

    def ask_several(self, conversations: Sequence[Messages], num_answers: int) -> list[list[str]]:
        """Return the judge's answers to each conversation, in order, and ask only for unknown ones.

        An answer that was cut or withheld before its first word is an empty string.

        Args:
            conversations: The messages of each request.
            num_answers: Number of answers to each, asked for and stored one by one. They differ
                only as far as the judge's own sampling does.

        Raises:
            JudgeError: If answers are missing after all tries; the others are kept, so that
                repeating the call asks only for the missing ones.
            RequestError: If the key is missing or a stored answer is damaged.
        """
        numbers = range(num_answers)
        requests = [self._request(messages) for messages in conversations for _ in numbers]
        keys = [
            self.store.key(request, place % num_answers) for place, request in enumerate(requests)
        ]
        answers = {key: self.store.read(key) for key in dict.fromkeys(keys)}
        missing = {k: r for k, r in zip(keys, requests, strict=True) if answers[k] is None}
        if missing:
            known = len(answers) - len(missing)
            log.info("%s judges %d answers; %d are already judged", self.model, len(missing), known)
            # An event loop in its own thread also works in a notebook, which already runs one, and
            # ends at once with Ctrl-C.
            with start_blocking_portal() as portal:
                answers |= portal.call(self._ask, missing)
        texts = [answers[key] or "" for key in keys]
        return [texts[start : start + num_answers] for start in range(0, len(texts), num_answers)]

    async def _ask(self, missing: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        answers: dict[str, str] = {}
        faults: list[Exception] = []
        limiter = anyio.CapacityLimiter(self.concurrency)
        openai = import_openai()
        failed_in_a_row = 0

        async def ask_one(key: str, request: Mapping[str, Any]) -> None:
            nonlocal failed_in_a_row
            async with limiter:
                # A bad request must not stop the others; but if the server is down, each of them
                # would use up all its tries.
                if failed_in_a_row >= max(self.concurrency, 3) or any(map(_affects_all, faults)):
                    return
                try:
                    body = await self._complete(client, request)
                    answer, served_model = answer_of(body), json.loads(body).get("model")
                    self.store.keep(key, request, answer, served_model)
                    answers[key] = answer
                    failed_in_a_row = 0
                except (openai.APIError, OSError) as fault:
                    faults.append(fault)
                    failed_in_a_row += 1

        async with (
            self._client(self.max_tries, self.timeout_s) as client,
            anyio.create_task_group() as group,
        ):
            for key, request in missing.items():
                group.start_soon(ask_one, key, request)
        if faults:
            left = len(missing) - len(answers)
            raise JudgeError(
                f"{left} of {counted(len(missing), 'judgement')} missing, {len(faults)} of them "
                f"after up to {counted(self.max_tries, 'try', 'tries')}; the others are kept under "
                f"{self.store.folder}. "
                f"{self._explain(faults[0], self.timeout_s)} Run again to ask for the missing ones."
            )
        return answers

    async def _check(self, timeout_s: float) -> None:
        async with self._client(1, timeout_s) as client:
            try:
                listed = await self._listed(client)
                if listed and self.model not in listed:
                    more = ", ..." if len(listed) > 20 else ""
                    raise RequestError(
                        f"model: {self.base_url} has no {self.model!r}; it lists "
                        f"{', '.join(listed[:20])}{more}."
                    )
                await self._ask_trial(client)
            except import_openai().APIError as fault:
                raise RequestError(self._explain(fault, timeout_s)) from None

    async def _listed(self, client: Any) -> list[str]:
        """Return the names of the endpoint's models; none if it has no such list."""
        try:
            reply = await client.models.with_raw_response.list()
            return [str(entry["id"]) for entry in json.loads(reply.content)["data"]]
        except import_openai().APIStatusError as fault:
            if fault.status_code in (400, 404, 405, 501):
                return []
            raise
        except (ValueError, TypeError, KeyError):
            return []

    async def _ask_trial(self, client: Any) -> None:
        openai = import_openai()
        try:
            await self._complete(client, self._request(_TRIAL))
        except openai.APITimeoutError:
            log.info("%s is slow, but accepts requests", self.model)
        except openai.RateLimitError as fault:
            if fault.code == "insufficient_quota":  # any other limit is temporary
                raise

    async def _complete(self, client: Any, request: Mapping[str, Any]) -> bytes:
        required = {key: request[key] for key in ("model", "messages")}
        others = {key: request[key] for key in request.keys() - required}
        reply = await client.chat.completions.with_raw_response.create(
            **required, extra_body=others
        )
        return bytes(reply.content)

    def _request(self, messages: Messages) -> dict[str, Any]:
        copied = [dict(message) for message in messages]
        return {"model": self.model, "messages": copied, **self.parameters}

    def _client(self, max_tries: int, timeout_s: float) -> Any:
        return import_openai().AsyncOpenAI(
            api_key=self._api_key() or "none",  # the SDK requires one, local servers ignore it
            base_url=self.base_url,
            max_retries=max_tries - 1,
            timeout=timeout_s,
            http_client=HttpClient(timeout_s, self.concurrency),
        )

    def _api_key(self) -> str | None:
        return read_api_key(self.api_key_env, self.base_url)

    def _explain(self, fault: Exception, timeout_s: float) -> str:
        """Return the reason of a failure and the fix, without the key, which a server may echo."""
        if isinstance(fault, OSError):
            return self.store.unwritable(fault)
        reason, fix = reason_and_fix(fault, timeout_s, self.api_key_env)
        reason = " ".join(reason.split()).replace(self._api_key() or "\0", "[the key]")
        return f"Judge {self.model!r} at {self.base_url}: {reason[:300].rstrip('.')}. {fix}"


def _affects_all(fault: Exception) -> bool:
    return isinstance(fault, OSError) or getattr(fault, "status_code", 0) in (401, 403, 404)
