"""Chooses from a model's files how its engine fits this machine: KV cache, longest sequence, data type."""
