"""Everything HTTP: the ASGI app, authentication, routing, the SSE relay, administration and the CLI."""
