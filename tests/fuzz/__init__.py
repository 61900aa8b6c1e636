"""Tests with input that is damaged at random."""
