"""The vLLM engine: a server that is given the adapters."""
