"""Run generated code in isolation."""
