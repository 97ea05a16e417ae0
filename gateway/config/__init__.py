"""The configuration: TOML and environment into frozen dataclasses, and the faults of each section."""
