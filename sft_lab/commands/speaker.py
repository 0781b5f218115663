"""Answer with a trained model, by the template of its training."""

from collections.abc import Sequence
from typing import Any

import torch

from sft_lab.commands.trained_model import load_stage
from sft_lab.data.conversation import Message
from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding, make_engine
from sft_lab.evaluation.reasoning import Completion, template_reasons
from sft_lab.model.qlora import compute_dtype
from sft_lab.runs.stages import EndedStage
from sft_lab.runs.store import RunStore


class Speaker:
    """A trained model that answers.

    Args:
        model: The model.
        renderer: What rendered its training.
        dtype: The dtype of its products.
        batch_size: Answers generated at a time.
    """

    def __init__(
        self, model: Any, renderer: Renderer, dtype: torch.dtype, batch_size: int = 1
    ) -> None:
        self._model = model
        self._renderer = renderer
        self._dtype = dtype
        self._engine = make_engine("native", batch_size, drafts=False)

    @classmethod
    def of_stage(cls, store: RunStore, stage: EndedStage, batch_size: int = 1) -> "Speaker":
        """Load the model of a run's stage.

        Raises:
            RequestError: If the base or the stage's weights are not available.
        """
        model, config = load_stage(store, stage)
        dtype = compute_dtype(config.model_settings.precision)
        return cls(model, config.renderer(), dtype, batch_size)

    def answer(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, max_new_tokens: int
    ) -> list[Completion]:
        """Return the answers to conversations that end with a user's turn.

        Args:
            chats: The conversations.
            decoding: How answers are generated.
            max_new_tokens: Longest answer, in tokens.

        Raises:
            RequestError: If the template cannot render one of them.
        """
        prompts = [self._renderer.prompt_ids(chat) for chat in chats]
        with self._engine.serving(self._model, 0, self._dtype) as weights:
            model = EvaluatedModel(
                weights,
                self._engine,
                self._renderer,
                decoding,
                cut_reasoning=template_reasons(self._renderer),
            )
            return model.complete(prompts, max_new_tokens)
