"""Group prompts of similar length into batches."""

from collections.abc import Sequence


def batches_longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length, longest first: little padding, and memory runs out early.

    Args:
        lengths: Length of each prompt in tokens.
        batch_size: Most prompts in a batch.

    Returns:
        Indices into ``lengths``, each exactly once, by batch.

    Raises:
        ValueError: If the batch size is below 1.

    >>> batches_longest_first([3, 9, 5, 9], batch_size=2)
    [[1, 3], [2, 0]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
