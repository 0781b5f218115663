"""Grade responses by the verifiable instructions of IFEval's prompts."""
