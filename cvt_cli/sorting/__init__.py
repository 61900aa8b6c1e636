"""Sorting of files into a folder for each label."""
