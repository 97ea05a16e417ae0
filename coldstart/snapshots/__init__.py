"""Snapshots on disk: their store, their manifests, and what a wake reads of them first."""
