"""What the user types: one file per subcommand."""
