"""Inspection of checkpoints: facts, weights, differences, families, and their tables."""
