"""Check, before anything is trained, that a vLLM server can answer in a run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation.vllm.protocol import (
    COMPLETIONS,
    LOAD,
    MODELS,
    completed_token_ids,
    completion_request,
    model_cards,
)
from sft_lab.evaluation.generation.vllm.server import (
    VllmError,
    VllmRefusalError,
    VllmServer,
    ask_server,
)
from sft_lab.evaluation.generation.vllm.sleep import awake
from sft_lab.paths import resolve, unpinned

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that --max-lora-rank accepts


def check_server(server: VllmServer, base: str, *, rank: int, num_tokens: int) -> str:
    """Check that a server answers, has the base, and accepts adapters at runtime.

    Whether it accepts adapters of this rank, and can read their folder, shows when it loads the
    first ones, before the first step.

    Args:
        server: The server.
        base: The base model of the run.
        rank: Rank of the adapters, for the command in the message.
        num_tokens: Longest prompt plus answer, in tokens.

    Returns:
        The base that the server reports.

    Raises:
        RequestError: If not; the message gives the command to start the server.
    """
    served_rank = min((allowed for allowed in _RANKS if allowed >= rank), default=_RANKS[-1])
    fix = (
        f"start it by VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {resolve(base)} "
        f"--enable-lora --max-lora-rank {served_rank} --generation-config vllm, or set "
        "evaluation.engine to native."
    )
    try:
        card = _base_card(server, ask_server(server, MODELS, None, model_cards, max_tries=1), base)
        _check_runtime_lora(server, fix)
        trial = completion_request(str(card["id"]), [0], max_new_tokens=1, eos_token_ids=())
        parse = partial(completed_token_ids, request=trial)
        with awake(server, max_tries=1):
            ask_server(server, COMPLETIONS, trial, parse, max_tries=1)
    except VllmError as fault:
        if isinstance(fault, VllmRefusalError) and fault.status in (401, 403):
            fix = "evaluation.vllm.api_key_env must name the variable that holds its key."
        raise RequestError(f"{server} cannot be asked: {fault}; {fix}") from None
    limit = card.get("max_model_len")
    if isinstance(limit, int) and limit < num_tokens:
        raise RequestError(
            f"{server} takes {limit} tokens with the answer, and a prompt needs {num_tokens}; "
            f"start it with --max-model-len {num_tokens} or more."
        )
    return str(card.get("root") or card["id"])


def _check_runtime_lora(server: VllmServer, fix: str) -> None:
    """Send an empty request to load adapters: 400 if the server could, 404 if it cannot."""
    try:
        ask_server(server, LOAD, {"lora_name": "", "lora_path": ""}, bytes, max_tries=1)
    except VllmRefusalError as fault:
        if fault.status not in (404, 405):
            return
        raise RequestError(
            f"{server} was not started for adapters that change at runtime; {fix}"
        ) from None


def _base_card(
    server: VllmServer, cards: Sequence[Mapping[str, Any]], base: str
) -> Mapping[str, Any]:
    """Return the entry of the base in a server's list of models."""
    bases = [card for card in cards if not card.get("parent")]
    for card in bases:
        names = [str(card["id"]), str(card.get("root") or card["id"])]
        if server.model in names if server.model else _is_among(base, names):
            return card
    shown = ", ".join(str(card.get("root") or card["id"]) for card in bases[:20]) or "no base"
    shown += ", ..." if bases[20:] else ""
    key = "evaluation.vllm.model" if server.model else "model.base"
    raise RequestError(
        f"{server} serves {shown}, and {key} is {server.model or base}. Serve that, or, if it is "
        "the same model under another name, set evaluation.vllm.model to the name it has there."
    )


def _is_among(base: str, names: Sequence[str]) -> bool:
    """Return whether one of several names or paths is the base that a config names."""
    known = Path(resolve(base))
    return unpinned(base)[0] in names or any(
        known.exists() and Path(name).exists() and known.samefile(name) for name in names
    )
