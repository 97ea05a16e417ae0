"""The namespaces that an engine runs in, the first process in them, and spare sandboxes."""
