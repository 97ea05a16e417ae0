"""The way out: usage, costs, exports and checks, read from the ledger."""
