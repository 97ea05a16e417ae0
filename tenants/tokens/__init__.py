"""Signed tokens (JWT, RFC 7519): of configured issuers, and those that a key mints for a browser."""
