"""From the rendered turns of a conversation to training rows, whose targets are its answers."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sft_lab.data.conversation import RowError
from sft_lab.data.tokenized_row import RowTooLongError, TokenizedRow, TooLong


@dataclass(frozen=True)
class Turn:
    """An assistant turn as text.

    Attributes:
        index: Its message's place in the conversation.
        prompt: Everything before it.
        answered: Everything up to its end.
        is_trained: Whether the loss falls on it.
    """

    index: int
    prompt: str
    answered: str
    is_trained: bool


def rows_of_turns(
    turns: Sequence[Turn],
    ids: Mapping[str, list[int]],
    stops: Set[int],
    max_length: int | None,
    too_long: TooLong,
) -> list[TokenizedRow]:
    """Return the rows of a conversation.

    Args:
        turns: Its assistant turns, in order.
        ids: Token ids of their texts.
        stops: Ids that end an answer.
        max_length: Longest row in tokens.
        too_long: Drop a longer row, or cut it after the last trained turn that fits.

    Returns:
        One row; one for each trained turn if the template rewrites earlier turns.

    Raises:
        RowTooLongError: If no row is short enough.
        RowError: If the answers share tokens with their prompts or have no end, or none is trained.
    """
    if not turns:
        raise RowError("the last turn is not the assistant's")
    if not any(turn.is_trained for turn in turns):
        raise RowError("every answer has weight 0")
    kept = turns
    if max_length is not None and len(ids[turns[-1].answered]) > max_length:
        fitting = 0
        if too_long == "cut":
            lengths = [len(ids[turn.answered]) for turn in turns]
            fits = (n for n, t in enumerate(lengths, 1) if t <= max_length)
            fitting = max((n for n in fits if turns[n - 1].is_trained), default=0)
        if not fitting:
            raise RowTooLongError(f"longer than max_length {max_length}")
        kept = turns[:fitting]
    whole, is_cut = kept[-1].answered, len(kept) < len(turns)
    trained = [turn for turn in kept if turn.is_trained]
    if all(whole.startswith(turn.answered) for turn in trained):
        return [TokenizedRow(ids[whole], _spans(whole, trained, ids, stops), is_cut)]
    return [
        TokenizedRow(ids[turn.answered], _spans(turn.answered, [turn], ids, stops), is_cut)
        for turn in trained
    ]


def _spans(
    whole: str, turns: Sequence[Turn], ids: Mapping[str, list[int]], stops: Set[int]
) -> tuple[tuple[int, int], ...]:
    """Return the ranges of a row's tokens that are answers."""
    input_ids = ids[whole]
    spans = []
    for turn in turns:
        if not turn.answered.startswith(turn.prompt):
            raise RowError(
                "a prompt that is not the beginning of its row (another corpus.template may help)"
            )
        start, end = (_prefix_length(ids[t], input_ids) for t in (turn.prompt, turn.answered))
        if end <= max(start, 1):
            raise RowError("an answer without tokens")
        if stops.isdisjoint(input_ids[start:end]):
            # Some tokenizers know their end token only after a space, else they spell it out.
            raise RowError("an answer without an end token, which would never be learned")
        spans.append((start, end))
    return tuple(spans)


def _prefix_length(prefix: list[int], input_ids: list[int]) -> int:
    if input_ids[: len(prefix)] != prefix:
        raise RowError(
            "tokens merge across the border of two turns (another corpus.template may help)"
        )
    return len(prefix)
