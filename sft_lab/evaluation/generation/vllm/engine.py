"""Generation by a vLLM server, which is given the current adapters at each evaluation."""

import logging
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import torch
from anyio.from_thread import start_blocking_portal
from typing_extensions import override

from sft_lab.config.ranges import PositiveInt
from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.decoding import GREEDY, Decoding
from sft_lab.evaluation.generation.engine import Engine
from sft_lab.evaluation.generation.stop_strings import Decode, before_stop
from sft_lab.evaluation.generation.vllm.check import check_server
from sft_lab.evaluation.generation.vllm.protocol import (
    COMPLETIONS,
    LOAD,
    UNLOAD,
    completed_token_ids,
    completion_request,
)
from sft_lab.evaluation.generation.vllm.server import (
    VllmClient,
    VllmError,
    VllmRefusalError,
    VllmServer,
    ask_server,
)
from sft_lab.evaluation.generation.vllm.sleep import awake
from sft_lab.model.qlora import save_trained
from sft_lab.paths import make_folder

log = logging.getLogger(__name__)

_UNLOAD_S = 30.0  # seconds; nothing is lost if it takes longer


class VllmEngine(Engine):
    """Sends every prompt as token ids to a vLLM server and reads token ids back.

    Decoding to text, end tokens and stop strings are handled here, so that a completion equals what
    the native engine returns for the same tokens. Each sample has its own seed, derived from the
    decoding's seed, the sample's number and its prompt.

    Args:
        server: The server.
        concurrency: Maximum number of open requests.
    """

    name = "vllm"
    is_local = False
    needs_adapters = True

    def __init__(self, server: VllmServer, concurrency: PositiveInt) -> None:
        self.server = server
        self.concurrency = concurrency
        self.served_base: str | None = None
        """The base that the server reports; known after ``check``."""

    @override
    def check(self, base: str, *, rank: int | None, num_tokens: int) -> None:
        if rank is None:  # refused where the model is configured
            return
        if self.server.adapter_dir is not None:
            make_folder("evaluation.vllm.adapter_dir", self.server.adapter_dir)
        self.served_base = check_server(self.server, base, rank=rank, num_tokens=num_tokens)

    @override
    def weights_name(self, base: str) -> str:
        return f"vllm: adapters on {self.served_base or base}"

    @override
    def serving(self, model: Any, step: int, dtype: torch.dtype) -> AbstractContextManager[Any]:
        # A resumed run may evaluate the same step again, with other adapters.
        return self.holding(model, f"sft_lab-step-{step}-{uuid4().hex}")

    @contextmanager
    def holding(self, model: Any, name: str) -> Iterator[str]:
        """Load a model's current adapters into the server for the duration of a ``with`` block.

        Args:
            model: PEFT's wrapper around a model.
            name: A name that is new to the server, whose prompt cache is keyed by it.

        Yields:
            The name under which ``complete`` requests them.

        Raises:
            RequestError: If the server does not load them.
            VllmError: If it does not answer.
        """
        with (
            awake(self.server),
            tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.server.adapter_dir) as made,
        ):
            folder = Path(made).resolve()
            save_trained(model, folder)
            if self.server.adapter_dir is not None:
                _share_with_group(folder, self.server.adapter_dir)
            try:
                self._load(name, folder)
            except VllmRefusalError as fault:
                rank = max(config.r for config in model.peft_config.values())
                raise RequestError(
                    f"{self.server} does not load adapters: {fault}. It needs --enable-lora and "
                    f"--max-lora-rank of {rank} or more, and must see {folder} under that path "
                    "(evaluation.vllm.adapter_dir), as the same user, or with the folder "
                    "open to its group alone (chmod 750)."
                ) from None
            try:
                yield name
            finally:
                try:
                    ask_server(
                        self.server,
                        UNLOAD,
                        {"lora_name": name},
                        bytes,
                        max_tries=1,
                        timeout_s=_UNLOAD_S,
                    )
                except VllmError as fault:
                    log.warning("%s still holds the adapter %s: %s", self.server, name, fault)

    @override
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
        samples: Sequence[int] | None = None,
    ) -> list[str]:
        bodies = [
            completion_request(
                model,
                prompt,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                decoding=decoding,
                sample=sample,
            )
            for prompt, sample in decoding.rows(prompts, samples)
        ]
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
                    parse = partial(completed_token_ids, request=body)
                    answers[place] = await client.ask(COMPLETIONS, body, parse)
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
                f"{self.server} has not answered a prompt, after up to {self.server.max_tries} "
                f"tries: {faults[0]}. Check the server, then resume the run with "
                "--ckpt_path last."
            )
        return answers

    def _load(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            # 500: it refuses adapters that do not fit.
            ask_server(self.server, LOAD, body, bytes, refusals=(500,))
        except VllmRefusalError as fault:
            # The name is unique: an earlier try has succeeded, but its reply was lost.
            if "already been loaded" not in fault.message:
                raise
        except VllmError as fault:
            raise VllmError(f"{self.server} does not take adapters: {fault}") from None


def _share_with_group(folder: Path, parent: Path) -> None:
    """Let a group read a folder's files, if the parent is open to that group and to nobody else.

    Raises:
        RequestError: If this user is not in the group.
    """
    found = parent.stat()
    if stat.S_IMODE(found.st_mode) & 0o057 != 0o050:  # others may read it: no group was chosen
        return
    try:
        for path in (*folder.iterdir(), folder):  # the folder last, when its files are ready
            os.chown(path, -1, found.st_gid)
            path.chmod(0o750 if path.is_dir() else 0o640)
    except PermissionError as fault:
        raise RequestError(
            f"evaluation.vllm.adapter_dir: {parent} is open to the group {found.st_gid}, which "
            "this user is not in; join it, or close the folder (chmod 700)."
        ) from fault
