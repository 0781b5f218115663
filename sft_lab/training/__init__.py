"""From a mixture to batches, and from a batch to a step."""
