"""Floor 0: configs, errors, files and assets; imports nothing of the package above it."""
