"""Acting on labels: a folder for each."""
