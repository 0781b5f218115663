"""Benchmarks: a file or folder each, with items, prompts and a grader."""
