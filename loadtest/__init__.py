"""Load generators and benchmarks. They speak HTTP only."""
