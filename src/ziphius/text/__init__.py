"""Floor 1: tokenizers and chat formats, in both directions; imports only floor 0."""
