"""Benchmarks and their scorers, batched generation, the sandbox for generated code."""
