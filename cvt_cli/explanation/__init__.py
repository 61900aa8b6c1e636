"""Explanation of labels by maps over the picture, and their drawing."""
