"""The vLLM engine: a server that is handed the adapters."""
