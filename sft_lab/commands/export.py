"""The command ``export``: a stage or checkpoint as PEFT adapters, a merged model, or GGUF."""

import os
import sys
from pathlib import Path

from sft_lab.commands.arguments import add_tracking_uri, command_parser
from sft_lab.errors import RequestError
from sft_lab.launch.early import check_checkpoint_file
from sft_lab.terminal import silence


def main(arguments: list[str]) -> int:
    """Export a stage of a run, or a checkpoint."""
    parser = command_parser("export")
    parser.add_argument(
        "stage",
        nargs="?",
        metavar="RUN[@STAGE]",
        help="a run's stage; by default the last that has ended",
    )
    parser.add_argument("--ckpt_path", type=Path, metavar="K", help="or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="a new folder")
    parser.add_argument(
        "--what",
        choices=("adapter", "merged", "gguf"),
        default="adapter",
        help="gguf needs llama.cpp's converter; default: adapter",
    )
    parser.add_argument("--push_to_hub", metavar="NAME", help="upload it there, as a private model")
    add_tracking_uri(parser)
    options = parser.parse_args(arguments)
    if (options.stage is None) == (options.ckpt_path is None):
        parser.error("name either RUN[@STAGE] or --ckpt_path")
    if options.ckpt_path is not None:
        check_checkpoint_file(options.ckpt_path)
    if os.path.lexists(options.out):  # a link to nowhere exists too
        raise RequestError(f"--out {options.out} already exists; choose a new folder.")

    from sft_lab.commands.gguf import find_script
    from sft_lab.runs.stages import find_stage
    from sft_lab.runs.store import RunStore

    if options.what == "gguf":
        find_script()
    if options.push_to_hub:
        _check_upload(options.push_to_hub)
    store = RunStore(options.tracking_uri)
    found = find_stage(store, options.stage) if options.stage is not None else None

    silence()
    from sft_lab.commands import trained_model
    from sft_lab.commands.model_card import model_card, recorded_result, step_after

    if found is not None:
        result = recorded_result(store, found.run_id)
        step = step_after(result, found.stage) if result else None
        model, config = trained_model.load_stage(store, found)
    else:
        run_id, step = trained_model.origin_of(options.ckpt_path)
        result = recorded_result(store, run_id)
        model, config = trained_model.load_trained(options.ckpt_path)
    card = model_card(config, options.what, result, step)
    trained_model.export(model, config, options.out, options.what, card)
    print(f"{options.what} written to {options.out}", file=sys.stderr)
    if options.push_to_hub:
        _upload(options.out, options.push_to_hub)
        print(f"uploaded to {options.push_to_hub}, private", file=sys.stderr)
    return 0


def _check_upload(name: str) -> None:
    """Check, before a model loads, that there is somebody to upload as."""
    from huggingface_hub import get_token

    from sft_lab.paths import is_hub_name

    if not is_hub_name(name):
        raise RequestError(f"--push_to_hub: expected a hub name such as you/model, got {name!r}.")
    if get_token() is None:
        raise RequestError(f"--push_to_hub {name}: nobody is logged in; run hf auth login.")


def _upload(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise RequestError(
            f"--push_to_hub {name}: {reason}. The model is in {folder}; hf upload sends it later."
        ) from fault
