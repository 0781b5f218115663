"""Loading of tokenizers, with errors that name the fix."""

from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.hub import commit_of
from sft_lab.paths import is_hub_name, resolve, unpinned


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer from a folder or the hub; the name may be ``pinned``.

    Raises:
        RequestError: If it does not exist, or cannot be downloaded.
    """
    from transformers import AutoTokenizer  # seconds to import; `--help` must not wait for it

    path, revision = unpinned(resolve(name))
    if is_hub_name(path):
        commit_of("corpus.tokenizer (without it, model.base)", path, "model", revision)
    elif not Path(path).exists():
        raise RequestError(
            f"corpus.tokenizer: no such folder: {path}. "
            "Name a folder with tokenizer files, or a hub name."
        )
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=False
        )
    except Exception as fault:  # a damaged tokenizer.json raises a bare Exception
        reason = str(fault).splitlines()[0]
        raise RequestError(
            f"corpus.tokenizer: no tokenizer can be loaded from {name}: {reason} "
            "Name a folder with tokenizer files, or a hub name while online."
        ) from fault
