"""Answer with the model of a run's stage, by the template of its training."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_lab.data.conversation import Message
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding, make_engine
from sft_lab.evaluation.reasoning import Completion, template_reasons
from sft_lab.launch.parser import parse_recorded
from sft_lab.model.qlora import compute_dtype, load_base
from sft_lab.runs.stages import BASE_STAGE, EndedStage
from sft_lab.runs.store import RunStore


class Speaker:
    """The model of a stage.

    Args:
        store: The store of the run.
        stage: The stage.
        decoding: How answers are generated.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Answers generated at a time.

    Raises:
        RequestError: If the base or the stage's weights are not available.
    """

    def __init__(
        self,
        store: RunStore,
        stage: EndedStage,
        decoding: Decoding,
        max_new_tokens: int,
        batch_size: int = 1,
    ) -> None:
        config = parse_recorded(stage.config)
        corpus, settings = config.plain["corpus"], config.model_settings
        self.label = stage.label
        self.decoding = decoding
        self.max_new_tokens = max_new_tokens
        self._renderer = Renderer(load_tokenizer(config.tokenizer), corpus["template"])
        self._dtype = compute_dtype(settings.precision)
        self._engine = make_engine("native", batch_size, drafts=False)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if stage.stage != BASE_STAGE:
                path = f"stages/{stage.stage}"
                saved = store.artifact_folder(stage.run_id, path, Path(folder))
            self._model = self._load(settings.base, settings.quantization, saved)

    def _load(self, base: str, quantization: Any, saved: Path | None) -> Any:
        if saved is not None and not (saved / "adapter_config.json").exists():
            return load_base(str(saved), quantization, self._dtype)
        model = load_base(base, quantization, self._dtype)
        if saved is None:
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(saved))

    def answer(self, chats: Sequence[Sequence[Message]]) -> list[Completion]:
        """Return the answers to conversations that end with a user's turn.

        Raises:
            RequestError: If the template cannot render one of them.
        """
        prompts = [self._renderer.prompt_ids(chat) for chat in chats]
        with self._engine.serving(self._model, 0, self._dtype) as weights:
            model = EvaluatedModel(
                weights,
                self._engine,
                self._renderer,
                self.decoding,
                cut_reasoning=template_reasons(self._renderer),
            )
            return model.complete(prompts, self.max_new_tokens)
