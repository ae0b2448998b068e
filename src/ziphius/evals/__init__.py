"""Measure models on problems with verified answers, with intervals that say how sure it is."""
