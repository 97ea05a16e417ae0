"""Carries out: an engine's sandboxed processes are started, restored, dumped and stopped."""
