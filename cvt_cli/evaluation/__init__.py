"""Evaluation of a model on labelled images, and its tables."""
