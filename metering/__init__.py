"""Token counting, the durable ledger and the usage reports made from it."""
