"""Tests of cvt_cli.output."""
