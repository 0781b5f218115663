"""Answer with the model of a run's stage, by the template of its training."""

from collections.abc import Sequence

from sft_lab.commands.trained_model import load_stage
from sft_lab.data.conversation import Message
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding, make_engine
from sft_lab.evaluation.reasoning import Completion, template_reasons
from sft_lab.model.qlora import compute_dtype
from sft_lab.runs.stages import EndedStage
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
        self._model, config = load_stage(store, stage)
        self.label = stage.label
        self.decoding = decoding
        self.max_new_tokens = max_new_tokens
        self._renderer = config.renderer()
        self._dtype = compute_dtype(config.model_settings.precision)
        self._engine = make_engine("native", batch_size, drafts=False)

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
