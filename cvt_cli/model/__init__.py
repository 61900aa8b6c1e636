"""The network of the paper, in torch. Knows nothing of files, the Hub or the terminal."""
