"""torchmetrics classes; forgetting, intervals and paired tests as pure functions beside them."""
