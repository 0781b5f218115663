"""Generation by a vLLM server, which is handed the adapters as they are at each evaluation."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.stop_strings import Decode, before_stop
from sft_lab.evaluation.generation.vllm_server import (
    VllmClient,
    VllmError,
    VllmRefusalError,
    VllmServer,
)
from sft_lab.paths import resolve
from sft_lab.qlora import save_trained

log = logging.getLogger(__name__)

T = TypeVar("T")

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_UNLOAD_S = 30.0  # seconds; nothing is lost where it takes longer
_COMPLETE, _MODELS = "/v1/completions", "/v1/models"

# A server fills what a request leaves out from the model's generation_config.json, which of an
# instruction-tuned model may hold a repetition penalty.
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class VllmEngine:
    """Sends every prompt as token ids to a vLLM server and reads token ids back.

    Their text, the end tokens and the stop strings are this project's, so that a completion is what
    the native engine would make of the same tokens. A sample is drawn by a seed of its own, which
    follows from the seed of the decoding, its number and its prompt.

    Args:
        server: The server.
        concurrency: Requests that are open at a time.
    """

    def __init__(self, server: VllmServer, concurrency: int) -> None:
        self.server = server
        self.concurrency = concurrency
        self.served_base: str | None = None
        """What the server says it has loaded; known once it has been checked."""

    def check(self, base: str, *, rank: int, num_tokens: int) -> None:
        """Make sure, before anything is trained, that the server can be asked and has the base.

        Whether it takes adapters of this rank, and reads the folder they lie in, is seen when it
        loads the first ones, before the first step.

        Args:
            base: The base that is trained.
            rank: Rank of the adapters, for the command in the message.
            num_tokens: Longest prompt and its answer, in tokens.

        Raises:
            RequestError: If not; says how to start the server.
        """
        served = min((allowed for allowed in _RANKS if allowed >= rank), default=_RANKS[-1])
        fix = (
            f"start it by VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {resolve(base)} "
            f"--enable-lora --max-lora-rank {served} --generation-config vllm, or set "
            "evaluation.engine to native."
        )
        if self.server.adapter_dir is not None:
            from sft_lab.tracking import make_folder

            make_folder("evaluation.vllm.adapter_dir", self.server.adapter_dir)
        try:
            card = self._base_card(self._ask(_MODELS, None, _cards, max_tries=1), base)
            self._check_runtime_lora(fix)
            trial = self._body(str(card["id"]), [0], max_new_tokens=1, eos_token_ids=())
            self._ask(_COMPLETE, trial, _token_ids, max_tries=1)
        except VllmError as fault:
            if isinstance(fault, VllmRefusalError) and fault.status in (401, 403):
                fix = "evaluation.vllm.api_key_env must name the variable that holds its key."
            raise RequestError(f"{self._where} cannot be asked: {fault}; {fix}") from None
        limit = card.get("max_model_len")
        if isinstance(limit, int) and limit < num_tokens:
            raise RequestError(
                f"{self._where} takes {limit} tokens with the answer, and a prompt needs "
                f"{num_tokens}; start it with --max-model-len {num_tokens} or more."
            )
        self.served_base = str(card.get("root") or card["id"])

    @contextmanager
    def serving(self, model: Any, name: str) -> Iterator[str]:
        """Have the server hold a model's adapters as they are now, for the time of a ``with``.

        Args:
            model: PEFT's wrapper around a model.
            name: A name that the server has never held: its cache of prompts goes by it.

        Yields:
            The name, by which ``complete`` asks for them.

        Raises:
            RequestError: If the server does not load them.
            VllmError: If it does not answer.
        """
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.server.adapter_dir) as made:
            folder = Path(made).resolve()
            save_trained(model, folder)
            os.chmod(folder, 0o755)  # the server may run as somebody else
            try:
                self._load(name, folder)
            except VllmRefusalError as fault:
                rank = max(config.r for config in model.peft_config.values())
                raise RequestError(
                    f"{self._where} does not load adapters: {fault}. It needs --enable-lora and "
                    f"--max-lora-rank of {rank} or more, and must see {folder} under that path "
                    "(evaluation.vllm.adapter_dir)."
                ) from None
            try:
                yield name
            finally:
                try:
                    self._ask(_UNLOAD, {"lora_name": name}, bytes, max_tries=1, timeout_s=_UNLOAD_S)
                except VllmError as fault:
                    log.warning("%s still holds the adapter %s: %s", self._where, name, fault)

    def complete(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        pad_token_id: int,
        decode: Decode,
        decoding: Decoding = GREEDY,
    ) -> list[str]:
        """See ``Engine``; the model is the name that ``serving`` yields.

        Raises:
            VllmError: If an answer is missing after all tries.
        """
        bodies = [
            self._body(
                model,
                prompt,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                decoding=decoding,
                sample=sample,
            )
            for prompt in prompts
            for sample in range(decoding.num_samples)
        ]
        # An event loop in a thread of its own also works in a notebook, and ends with Ctrl-C.
        with start_blocking_portal() as portal:
            answers = portal.call(self._complete, bodies)
        texts = []
        for token_ids in answers:
            if token_ids and token_ids[-1] in eos_token_ids:
                token_ids = token_ids[:-1]
            texts.append(before_stop(decode(token_ids), decoding.stop_strings))
        return texts

    async def _complete(self, bodies: Sequence[dict[str, Any]]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in bodies]
        faults: list[VllmError] = []
        limiter = anyio.CapacityLimiter(self.concurrency)

        async def answer(place: int, body: dict[str, Any]) -> None:
            async with limiter:
                try:
                    answers[place] = await client.ask(_COMPLETE, body, _token_ids)
                except VllmError as fault:
                    faults.append(fault)
                    group.cancel_scope.cancel()

        async with (
            VllmClient(self.server, self.concurrency) as client,
            anyio.create_task_group() as group,
        ):
            for place, body in enumerate(bodies):
                group.start_soon(answer, place, body)
        if faults:
            raise VllmError(
                f"{self._where} has not answered a prompt, after up to {self.server.max_tries} "
                f"tries: {faults[0]}. See whether it is well; the run goes on with --ckpt_path "
                "last."
            )
        return answers

    def _body(
        self,
        model: str,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        decoding: Decoding = GREEDY,
        sample: int = 0,
    ) -> dict[str, Any]:
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "stop": list(decoding.stop_strings),
            "stop_token_ids": sorted(eos_token_ids),
            "ignore_eos": True,  # its own, so that only the above end an answer
            "return_token_ids": True,
            **_NEUTRAL,
        }
        if decoding.temperature > 0:
            body["seed"] = decoding.seed_of(prompt, sample)
        return body

    def _load(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            self._ask(_LOAD, body, bytes, refusals=(500,))  # so it refuses what does not fit
        except VllmRefusalError as fault:
            # The name is ours alone: a try before has come through, and its reply has not.
            if "already been loaded" not in fault.message:
                raise
        except VllmError as fault:
            raise VllmError(f"{self._where} does not take adapters: {fault}") from None

    def _check_runtime_lora(self, fix: str) -> None:
        """Ask it to load nothing: 400 where it could, 404 where it has no such thing."""
        try:
            self._ask(_LOAD, {"lora_name": "", "lora_path": ""}, bytes, max_tries=1)
        except VllmRefusalError as fault:
            if fault.status not in (404, 405):
                return
            raise RequestError(
                f"{self._where} was not started for adapters that change while it runs; {fix}"
            ) from None

    def _base_card(self, cards: Sequence[Mapping[str, Any]], base: str) -> Mapping[str, Any]:
        """Return what the server lists of the base."""
        bases = [card for card in cards if not card.get("parent")]
        for card in bases:
            names = [str(card["id"]), str(card.get("root") or card["id"])]
            if self.server.model in names if self.server.model else _names(base, names):
                return card
        shown = ", ".join(str(card.get("root") or card["id"]) for card in bases) or "no base"
        wanted = self.server.model or base
        key = "evaluation.vllm.model" if self.server.model else "model.base"
        raise RequestError(
            f"{self._where} serves {shown}, and {key} is {wanted}. Serve that, or, if it is the "
            "same model under another name, set evaluation.vllm.model to the name it has there."
        )

    def _ask(
        self,
        path: str,
        body: dict[str, Any] | None,
        parse: Callable[[bytes], T],
        **settings: Any,
    ) -> T:
        async def ask() -> T:
            async with VllmClient(self.server, concurrency=1) as client:
                return await client.ask(path, body, parse, **settings)

        with start_blocking_portal() as portal:
            return portal.call(ask)

    @property
    def _where(self) -> str:
        return f"evaluation.vllm: the server at {self.server.root}"


def _names(base: str, names: Sequence[str]) -> bool:
    """Whether one of several names or paths is a base as a config names it."""
    known = Path(resolve(base))
    return base in names or any(
        known.exists() and Path(name).exists() and known.samefile(name) for name in names
    )


def _cards(body: bytes) -> list[Mapping[str, Any]]:
    try:
        cards = json.loads(body)["data"]
        return [card for card in cards if isinstance(card["id"], str)]
    except (ValueError, TypeError, KeyError) as fault:
        raise ValueError(f"the reply lists no models, got {_shown(body)}") from fault


def _token_ids(body: bytes) -> list[int]:
    """Return the token ids of a completion, the one that ended it included.

    Raises:
        ValueError: If the reply is no completion, or not a whole one.
    """
    try:
        choice = json.loads(body)["choices"][0]
        reason = choice["finish_reason"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as fault:
        raise ValueError(f"the reply is no completion, got {_shown(body)}") from fault
    if reason not in ("stop", "length"):
        raise ValueError(f"the answer was not finished, finish_reason {reason!r}")
    token_ids = choice.get("token_ids")
    if not isinstance(token_ids, list) or not all(isinstance(each, int) for each in token_ids):
        raise ValueError("the reply has no token_ids, which vLLM returns from 0.10.2 on")
    return token_ids


def _shown(body: bytes) -> str:
    return repr(body[:100].decode(errors="replace"))
