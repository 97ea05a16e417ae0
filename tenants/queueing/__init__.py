"""Fair queues: whose turn it is at a model, and how large each project's share is."""
