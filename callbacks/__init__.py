"""Callbacks that hook the lab into a Lightning Trainer."""
