"""Runs compared: abilities at every stage boundary, paired tests, forgotten and regained items."""
