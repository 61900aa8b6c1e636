"""Checkpoints: from a name to configuration, labels, preprocessing and weights."""
