"""The claims and published figures of arXiv 2310.05492."""
