"""Floor 7: one file per command; it parses options, calls down and prints."""
