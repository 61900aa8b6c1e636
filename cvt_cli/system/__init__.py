"""What the operating system needs from us: files, locks, signals, cores, streams, text."""
