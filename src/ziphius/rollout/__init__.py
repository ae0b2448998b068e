"""Sample answers from the very model that trains, and score them by their tasks."""
