"""Client libraries, unpatched, against a gateway: ``python -m tests.e2e.clients`` (``make test-clients``)."""
