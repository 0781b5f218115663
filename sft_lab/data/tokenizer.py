"""Loading of tokenizers, with errors that name the fix."""

import hashlib
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.hub import commit_of
from sft_lab.paths import is_hub_name, resolve, unpinned

_WHERE_FOUND = {"is_local", "local_files_only", "name_or_path"}


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


def digest_of(tokenizer: Any, template: str) -> str:
    """Return a SHA-256 of a template and of what a tokenizer saves."""
    digest = hashlib.sha256(template.encode())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":
                # How it was found, which differs with and without network, decides no token.
                found = {k: v for k, v in json.loads(content).items() if k not in _WHERE_FOUND}
                content = json.dumps(found, sort_keys=True).encode()
            name = file.relative_to(folder).as_posix().encode()
            digest.update(name + hashlib.sha256(content).digest())
    return digest.hexdigest()


def special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern that finds special tokens in a text, or None if they are read as text."""
    if tokenizer.split_special_tokens:
        return None
    known = tokenizer.added_tokens_decoder.values()
    contents = {token.content for token in known if token.special}
    contents |= set(tokenizer.all_special_tokens)  # the only list of them without a tokenizer.json
    longest_first = sorted(contents, key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
