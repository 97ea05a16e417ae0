"""What operators see: logs, metrics and samples of engine time."""
