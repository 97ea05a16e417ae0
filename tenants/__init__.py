"""Organizations, projects, API keys and the principals that they identify."""
