"""A folder of labelled images becomes a checkpoint."""
