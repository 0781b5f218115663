"""torchmetrics classes; forgetting and intervals as pure functions beside them."""
