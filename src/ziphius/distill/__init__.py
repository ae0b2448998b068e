"""A small model learns from a large one: from its verified answers, or from its probabilities."""
