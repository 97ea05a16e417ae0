"""What runs inside the engine's own processes. The host starts it by name and never imports it."""
