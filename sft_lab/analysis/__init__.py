"""The analysis of finished runs; each definition is here once."""
