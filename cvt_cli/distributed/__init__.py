"""The same run on many machines."""
