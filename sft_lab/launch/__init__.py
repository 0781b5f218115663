"""Parse a config, build what it describes, and start, resume or fork the run."""
