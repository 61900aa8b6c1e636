"""Facts of a checkpoint, its weights, two side by side, the families; and their tables."""
