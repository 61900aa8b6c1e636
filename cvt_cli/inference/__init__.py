"""Pixels become predictions."""
