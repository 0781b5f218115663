"""Export a checkpoint: PEFT adapters, or one merged model that needs no base."""

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch

from sft_lab.data.rendering import Renderer
from sft_lab.data.templates import TEMPLATES
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.launch.parser import parse_recorded
from sft_lab.launch.run_config import RunConfig
from sft_lab.model.adapters import add_frozen_adapters, kept_weights
from sft_lab.model.base_digest import base_digest
from sft_lab.model.qlora import (
    add_lora,
    check_base,
    compute_dtype,
    load_base,
    plain_causal_lm,
    save_trained,
)
from sft_lab.model.unquantized import merged_copy
from sft_lab.paths import make_folder
from sft_lab.runs.checkpoint import read_checkpoint, stamp_of
from sft_lab.runs.inputs import BASE, check_inputs


def load_trained(checkpoint_path: Path) -> tuple[Any, RunConfig]:
    """Load the trained model of a checkpoint.

    Returns:
        The model, and the config of its run.

    Raises:
        RequestError: If the checkpoint is damaged, or does not match its base.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    stamp = stamp_of(checkpoint)
    config = parse_recorded(stamp.config)
    settings = config.model_settings
    inputs = {BASE: base_digest(check_base(settings.base))}
    check_inputs(stamp.inputs, inputs, f"--ckpt_path {checkpoint_path}")
    # In the dtype of training: otherwise rounded weights would quantise to other 4-bit weights.
    dtype = compute_dtype(settings.precision)
    model = load_base(settings.base, settings.quantization, dtype)
    if settings.lora is not None:
        model = add_lora(model, settings.lora, seed=0)
    weights = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    add_frozen_adapters(model, weights)
    if kept_weights(model) != set(weights):
        raise RequestError(
            f"--ckpt_path {checkpoint_path}: its weights do not match the base "
            f"{settings.base}, which has changed since training; restore the original base."
        )
    model.load_state_dict(weights, strict=False)
    return model, config


def export(checkpoint_path: Path, out: Path, what: Literal["adapter", "merged"]) -> None:
    """Write a checkpoint's model in a format that other tools load.

    Args:
        checkpoint_path: Path of a ``last.ckpt``.
        out: Folder to create.
        what: ``adapter`` for PEFT's format; ``merged`` for a whole model in float32 with the logits
            of the trained one: the adapters are merged into the base as it was quantised. Either
            comes with the tokenizer, the chat template used in training, and a generation config
            that stops where answers end.

    Raises:
        RequestError: If the folder exists, or the checkpoint cannot be loaded.
    """
    if out.exists():
        raise RequestError(f"--out {out} already exists; choose a new folder.")
    make_folder("--out", out.parent)
    model, config = load_trained(checkpoint_path)
    if what == "adapter" and not hasattr(model, "peft_config"):
        raise RequestError("--what adapter: the run trained no adapters; use --what merged.")
    corpus = config.plain["corpus"]
    renderer = Renderer(load_tokenizer(config.tokenizer), corpus["template"])
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        written = model if what == "adapter" else merged_copy(model, torch.float32)
        save_trained(written, part)
        _generation_config(written, renderer).save_pretrained(part)
        _chat_tokenizer(renderer).save_pretrained(part)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _generation_config(model: Any, renderer: Renderer) -> Any:
    """Return a model's generation config with the tokens that end answers as its eos.

    A base that ends documents with another token than its template ends turns would not stop.
    """
    config = deepcopy(plain_causal_lm(model).generation_config)
    config.eos_token_id = renderer.stop_token_ids
    config.pad_token_id = renderer.pad_token_id
    return config


def _chat_tokenizer(renderer: Renderer) -> Any:
    """Return the tokenizer with the template used in training, and the end of its turns as eos.

    Programs that read no generation config stop at the tokenizer's eos. A template that refers to
    the eos ends turns with it, or would change.
    """
    tokenizer = deepcopy(renderer.tokenizer)
    if renderer.template is not None:
        tokenizer.chat_template = TEMPLATES[renderer.template]
    if "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(renderer.answer_end_id)
    return tokenizer
