"""Floor 2: one model code for V2, V3, R1, Coder and the dense students; weights in and out."""
