"""Trained networks as files: bundles and StableHLO."""
