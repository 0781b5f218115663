"""Requests to a vLLM server, and parsing its replies."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sft_lab.evaluation.generation.decoding import GREEDY, Decoding

MODELS, COMPLETIONS = "/v1/models", "/v1/completions"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
# Level 1 keeps the weights in the machine's memory, and frees the device's.
SLEEP, WAKE = "/sleep?level=1&mode=wait", "/wake_up"

# A server fills missing fields from the model's generation_config.json, which may contain a
# repetition penalty for an instruction-tuned model.
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def completion_request(
    model: str,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    decoding: Decoding = GREEDY,
    sample: int = 0,
) -> dict[str, Any]:
    """Return the request for one answer.

    Args:
        model: The name of a base or of adapters.
        prompt: Token ids.
        max_new_tokens: Longest answer, in tokens.
        eos_token_ids: Tokens that end it.
        decoding: Decoding settings, with the strings that end it.
        sample: Its number among its prompt's samples.
    """
    request = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "stop": list(decoding.stop_strings),
        "stop_token_ids": sorted(eos_token_ids),
        "ignore_eos": True,  # the server's own, so that only those above end an answer
        "return_token_ids": True,
        **_NEUTRAL,
    }
    if decoding.temperature > 0:
        request["seed"] = decoding.seed_of(prompt, sample)
    return request


def model_cards(body: bytes) -> list[Mapping[str, Any]]:
    """Return the bases and adapters that a server lists, each with its ``id``.

    Raises:
        ValueError: If the reply is not such a list.
    """
    try:
        cards = json.loads(body)["data"]
        return [card for card in cards if isinstance(card["id"], str)]
    except (ValueError, TypeError, KeyError, RecursionError) as fault:
        raise ValueError(f"the reply lists no models, got {_shown(body)}") from fault


def completed_token_ids(body: bytes, request: Mapping[str, Any]) -> list[int]:
    """Return the token ids of the answer to a request, the one that ended it included.

    Raises:
        ValueError: If the reply is not a complete answer, or not to this request.
    """
    try:
        choice = json.loads(body)["choices"][0]
        reason, token_ids = choice["finish_reason"], choice.get("token_ids")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as fault:
        raise ValueError(f"the reply is not a completion, got {_shown(body)}") from fault
    if reason not in ("stop", "length"):
        raise ValueError(f"the answer was not finished, finish_reason {reason!r}")
    if not isinstance(token_ids, list) or not all(map(_is_token_id, token_ids)):
        raise ValueError("the reply has no token_ids, which vLLM returns from 0.10.2 on")
    if len(token_ids) > request["max_tokens"]:
        raise ValueError(
            f"the answer has {len(token_ids)} tokens, and {request['max_tokens']} were asked for"
        )
    if choice.get("prompt_token_ids") not in (None, request["prompt"]):
        raise ValueError("the reply answers another prompt")
    return token_ids


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _shown(body: bytes) -> str:
    return repr(body[:100].decode(errors="replace"))
