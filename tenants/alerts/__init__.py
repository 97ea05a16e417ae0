"""Spend alerts, and the outbox of their notifications."""
