"""A name becomes configuration, labels, preprocessing and weights."""
