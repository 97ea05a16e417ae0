"""The registry of adapters: owners, permissions, and the index that requests use."""
