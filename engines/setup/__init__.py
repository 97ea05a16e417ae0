"""Tools for a developer's machine: the default models and the lock file."""
