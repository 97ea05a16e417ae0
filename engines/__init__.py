"""What a model is, the vLLM process that serves it, the pool of engines on a host and the client that talks to one."""
