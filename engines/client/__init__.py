"""HTTP/1.1 from the gateway to one engine."""
