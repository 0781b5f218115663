"""Translate the SFT configs of axolotl and LLaMA-Factory."""

from pathlib import Path

import yaml

from sft_lab.commands.axolotl import from_axolotl
from sft_lab.commands.imported_run import Imported, Keys
from sft_lab.commands.llama_factory import from_llama_factory
from sft_lab.errors import RequestError


def translate(path: Path) -> Imported:
    """Translate a config file of axolotl or LLaMA-Factory.

    Raises:
        RequestError: If it is neither, trains something else, or names data that are unknown.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        reason = " ".join(str(fault).split())
        raise RequestError(f"import {path}: cannot be read as YAML: {reason}.") from fault
    if isinstance(values, dict) and "base_model" in values:
        return from_axolotl(path, Keys(values))
    if isinstance(values, dict) and "model_name_or_path" in values:
        return from_llama_factory(path, Keys(values))
    raise RequestError(
        f"import {path}: neither base_model (axolotl) nor model_name_or_path (LLaMA-Factory) is a "
        "key of it; name a config of one of them."
    )
