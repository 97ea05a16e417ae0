"""What a saboteur is told by: a file of this name in the engine's folder."""

ORDERS = "sabotage"
