"""What a model is, the vLLM process that serves it, the host's pool of engines, the client of one."""
