"""Tests, by folder; tests/e2e drives a real gateway with a real engine."""
