"""Floor 1: pure tensor functions and kernels; they know shapes, not models."""
