"""What tenants upload, in the data directory."""
