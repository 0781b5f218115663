"""IFEval's graders: which of a prompt's verifiable instructions a response follows."""
