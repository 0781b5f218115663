"""Ask a language model for ratings, and keep its judgements."""
