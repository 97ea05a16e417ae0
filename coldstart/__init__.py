"""Putting an engine to sleep and waking it: tiers and the sandbox that an engine runs in."""
