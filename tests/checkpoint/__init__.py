"""Tests of `cvt_cli.checkpoint`."""
