"""Tokens counted with a model's own tokenizer and chat template."""
