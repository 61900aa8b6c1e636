"""The operating system: files, locks, signals, cores, streams, text."""
