"""From files of rows to the batches of every stage: conversations, tokens, mixtures, order."""
