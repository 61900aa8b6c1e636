"""Inference: from pixels to predictions."""
