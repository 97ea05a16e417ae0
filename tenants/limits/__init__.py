"""Rate limits, monthly budgets, and the admission that applies them together."""
