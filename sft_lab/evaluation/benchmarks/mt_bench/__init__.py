"""Grade MT-Bench: two-turn questions, rated by a judge."""
