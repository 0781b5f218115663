"""torchmetrics classes, and forgetting, intervals and paired tests as pure functions."""
