"""A run on disk: logger, store, record, checkpoint, resume, fork, lock."""
