"""Training: a folder of labelled images becomes a checkpoint."""
