"""Images: from a path to pixels."""
