"""The endpoints: each authenticates, parses, calls and renders."""
