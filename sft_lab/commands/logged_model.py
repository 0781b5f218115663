"""Load the logged model of a run, as ``mlflow.pyfunc.load_model`` asks for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from sft_lab.commands.generate import chat_of
from sft_lab.commands.speaker import Speaker
from sft_lab.config.ranges import PositiveInt, range_fault
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import Decoding
from sft_lab.model.qlora import compute_dtype, load_saved
from sft_lab.runs.logged_model import ADAPTER, MAX_NEW_TOKENS

_BATCH_SIZE = 16
_RANGES = {"max_new_tokens": PositiveInt, **Decoding.__annotations__}


class LoggedSpeaker:
    """Answers the rows of a frame as the command ``generate`` answers a file.

    Args:
        speaker: The model.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return an answer for each row.

        Args:
            rows: Each has ``prompt``, or ``messages`` that end with the user's turn.
            params: ``max_new_tokens``, ``temperature``, ``top_p`` and ``seed``.

        Raises:
            RequestError: If a row has neither, its template cannot render it, or a parameter is
                out of its range.
        """
        options = {"max_new_tokens": MAX_NEW_TOKENS, **(params or {})}
        for key, value in options.items():
            if allowed := range_fault(value, _RANGES[key]):
                raise RequestError(f"predict: {key} must be {allowed}, got {value}.")
        max_new_tokens = options.pop("max_new_tokens")
        given = [
            {key: value for key, value in row.items() if value is not None}
            for row in rows.to_dict(orient="records")
        ]
        if not any(given):  # MLflow drops what the signature does not name
            raise RequestError(
                "predict: expected rows with 'prompt' or 'messages', got none; "
                'pass [{"prompt": "What is 3 plus 4?"}].'
            )
        chats = [chat_of(row, f"row {number}") for number, row in enumerate(given, start=1)]
        found = self.speaker.answer(chats, Decoding(**options), max_new_tokens)
        return [completion.answer for completion in found]


def _load_pyfunc(data: str, settings: Mapping[str, Any]) -> LoggedSpeaker:
    """Load the base with the adapters next to it, or weights among the run's artifacts."""
    if "weights" in settings:
        saved = mlflow.artifacts.download_artifacts(artifact_uri=settings["weights"])
    else:
        saved = str(Path(data) / ADAPTER)
    dtype = compute_dtype(settings["precision"])
    model = load_saved(Path(saved), settings["base"], settings["quantization"], dtype)
    tokenizer = load_tokenizer(settings["tokenizer"])
    renderer = Renderer(tokenizer, settings["template"], settings["template_args"])
    return LoggedSpeaker(Speaker(model, renderer, dtype, _BATCH_SIZE))
