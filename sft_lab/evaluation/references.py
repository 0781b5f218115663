"""Reference answers as tokens, and how well a model predicts them."""

from collections.abc import Sequence

from sft_lab import distributed
from sft_lab.data.conversation import Conversation, RowError
from sft_lab.data.rendering import Renderer
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import TokenPair
from sft_lab.evaluation.item import Item


def reference_pairs(benchmark: Benchmark, renderer: Renderer) -> list[TokenPair | None]:
    """Return the prompt and the reference answer of every item as token ids.

    An answer is rendered as in a training row, with the tokens that end it. None for an item
    without a reference answer, and for one that the template cannot render as a training row.
    """
    items = benchmark.items()
    answers = [benchmark.reference_answer(item) for item in items]
    known = [(item, text) for item, text in zip(items, answers, strict=True) if text is not None]
    found: dict[str, TokenPair | None] = {
        item.id: _continued(renderer, item.text, text)
        for item, text in known
        if item.text is not None
    }
    asked = [(item, text) for item, text in known if item.text is None]
    found |= zip([item.id for item, _ in asked], _answered(renderer, asked), strict=True)
    return [found.get(item.id) for item in items]


def answer_loss(pairs: Sequence[TokenPair | None], model: EvaluatedModel) -> float | None:
    """Return the nats per token of reference answers given their prompts; None without one.

    It is a mean over tokens, as the loss of training is.
    """
    known = [pair for pair in pairs if pair is not None]
    if not known:
        return None
    costs = [len(prompt) + len(answer) for prompt, answer in known]
    values = distributed.shared(
        costs,
        lambda places: model.log_likelihoods([known[place] for place in places]),
        model.in_step(),
    )
    return -sum(value for value, _ in values) / sum(len(answer) for _, answer in known)


def _continued(renderer: Renderer, text: str, answer: str) -> TokenPair:
    prompt, whole = renderer.continued_ids(text), renderer.continued_ids(text + answer)
    # Tokens may merge across the border; the answer is then what the prompt alone does not begin.
    common = 0
    while common < len(prompt) and prompt[common] == whole[common]:
        common += 1
    return whole[:common], whole[common:]


def _answered(renderer: Renderer, asked: Sequence[tuple[Item, str]]) -> list[TokenPair | None]:
    rows = [
        Conversation((*item.messages, {"role": "assistant", "content": text}))
        for item, text in asked
    ]
    pairs: list[TokenPair | None] = []
    for made in renderer.rows(rows):
        if isinstance(made, RowError):
            pairs.append(None)
        else:
            row = made[-1]
            start, end = row.spans[-1]
            pairs.append((list(row.input_ids[:start]), list(row.input_ids[start:end])))
    return pairs
