"""Load trained models, and write them as PEFT adapters, merged models or GGUF files."""

import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from sft_lab.commands.gguf import to_gguf
from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError
from sft_lab.launch.parser import parse_recorded
from sft_lab.launch.run_config import RunConfig
from sft_lab.model.adapter_config import add_adapters
from sft_lab.model.adapters import add_frozen_adapters, kept_weights
from sft_lab.model.base_digest import base_digest
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import (
    check_base,
    compute_dtype,
    load_base,
    load_saved,
    plain_causal_lm,
    save_trained,
)
from sft_lab.paths import make_folder, unpinned
from sft_lab.runs.checkpoint import read_checkpoint, stamp_of
from sft_lab.runs.inputs import BASE, check_inputs
from sft_lab.runs.stages import BASE_STAGE, EndedStage
from sft_lab.runs.store import RunStore

What = Literal["adapter", "merged", "gguf"]


def origin_of(checkpoint_path: Path) -> tuple[str, int]:
    """Return the id of a checkpoint's run, and the optimizer steps that it has taken."""
    checkpoint = read_checkpoint(checkpoint_path)
    return stamp_of(checkpoint).run_id, int(checkpoint["global_step"])


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
    if settings.adapters is not None:
        model = add_adapters(model, settings.adapters, config.seed)
    saved = checkpoint.get("state_dict", {})
    weights = {key.removeprefix("model."): value for key, value in saved.items()}
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RequestError(
            f"--ckpt_path {checkpoint_path}: its weights hold NaN or infinity; the run has "
            "diverged, so name an earlier checkpoint."
        )
    add_frozen_adapters(model, weights)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    fits = all(shapes.get(name) == value.shape for name, value in weights.items())
    if kept_weights(model) != set(weights) or not fits:
        raise RequestError(
            f"--ckpt_path {checkpoint_path}: its weights do not match the base "
            f"{settings.base}, which has changed since training; restore the original base."
        )
    model.load_state_dict(weights, strict=False)
    return model, config


def load_stage(store: RunStore, stage: EndedStage) -> tuple[Any, RunConfig]:
    """Load the model of a run's stage, whose trained weights are among the run's artifacts.

    Returns:
        The model, and the config of its run.

    Raises:
        RequestError: If the base or the stage's weights are not available.
    """
    config = parse_recorded(stage.config)
    settings = config.model_settings
    dtype = compute_dtype(settings.precision)
    if stage.stage == BASE_STAGE:
        return load_base(settings.base, settings.quantization, dtype), config
    with tempfile.TemporaryDirectory() as folder:
        saved = store.artifact_folder(stage.run_id, f"stages/{stage.stage}", Path(folder))
        return load_saved(saved, settings.base, settings.quantization, dtype), config


def export(model: Any, config: RunConfig, out: Path, what: What, card: str) -> None:
    """Write a trained model in a format that other tools load.

    Args:
        model: The model.
        config: The config of its run, which is written next to it, as ``run.yaml``.
        out: Folder to create.
        what: ``adapter`` for PEFT's format; ``merged`` for a whole model in float32 with the logits
            of the trained one: the adapters are merged into the base as it was quantised; ``gguf``
            for the same as llama.cpp reads it. The first two come with the tokenizer, the chat
            template used in training, and a generation config that stops where answers end.
        card: The model card.

    Raises:
        RequestError: If the folder exists, there are no adapters, or llama.cpp's script fails.
    """
    if what == "adapter" and not hasattr(model, "peft_config"):
        raise RequestError("--what adapter: the run trained no adapters; use --what merged.")
    make_folder("--out", out.parent)
    renderer = config.renderer()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        written = model if what == "adapter" else merged_copy(model, torch.float32)
        if what == "adapter":
            _, model.peft_config["default"].revision = unpinned(config.model_settings.base)
        save_trained(written, part)
        _generation_config(written, renderer).save_pretrained(part)
        _chat_tokenizer(renderer).save_pretrained(part)
        if what == "gguf":
            to_gguf(part)
        (part / "README.md").write_text(card, encoding="utf-8")  # in place of PEFT's empty form
        plain = yaml.safe_dump(dict(config.plain), sort_keys=False)
        (part / "run.yaml").write_text(plain, encoding="utf-8")
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
    if renderer.template is not None or renderer.template_args:
        tokenizer.chat_template = renderer.template_source
    if "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(renderer.answer_end_id)
    return tokenizer
