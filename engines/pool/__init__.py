"""Decides: one actor per model, its replicas, who waits, who sleeps, who gets memory."""
