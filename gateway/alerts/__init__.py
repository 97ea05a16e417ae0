"""Spend alerts: when they fire, and how those who are to know are told."""
