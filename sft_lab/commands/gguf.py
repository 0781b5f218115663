"""Convert a merged model for llama.cpp, with the script that comes with llama.cpp."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sft_lab.errors import RequestError

SCRIPT = "convert_hf_to_gguf.py"
FOLDER = "LLAMA_CPP"
"""The environment variable that names a checkout of llama.cpp."""


def find_script() -> Path:
    """Return llama.cpp's converter: from the folder ``LLAMA_CPP``, or the PATH.

    Raises:
        RequestError: If it is in neither.
    """
    folder = os.environ.get(FOLDER)
    found = str(Path(folder).expanduser() / SCRIPT) if folder else shutil.which(SCRIPT)
    if found is None or not Path(found).is_file():
        where = f"{FOLDER}={folder} has none" if folder else f"{FOLDER} is not set"
        raise RequestError(
            f"--what gguf needs llama.cpp's {SCRIPT}; {where}, and it is not on the PATH. Clone "
            f"github.com/ggml-org/llama.cpp, pip install its requirements, set {FOLDER} to the "
            "folder; or use --what merged."
        )
    return Path(found)


def to_gguf(folder: Path) -> None:
    """Replace the files of a merged model by ``model.gguf``, in float32 like the model.

    Raises:
        RequestError: If the script fails; with its last line.
    """
    command = [sys.executable, str(find_script()), str(folder), "--outtype", "f32"]
    made = folder.with_name(folder.name + ".gguf")
    try:
        ended = subprocess.run([*command, "--outfile", str(made)], capture_output=True, text=True)
        if ended.returncode or not made.is_file():
            said = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise RequestError(
                f"--what gguf: {SCRIPT} failed: {said}. Install its requirements; if they are, its "
                "llama.cpp may not know this architecture or tokenizer: use --what merged."
            )
        for file in folder.iterdir():
            file.unlink()
        os.replace(made, folder / "model.gguf")
    finally:
        made.unlink(missing_ok=True)
