"""Benchmarks of the network and of the whole run, on this machine and beside other software."""
