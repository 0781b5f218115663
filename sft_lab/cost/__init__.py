"""Estimate the steps, bytes and minutes of a run before training."""
