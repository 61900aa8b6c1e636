"""A path becomes pixels."""
