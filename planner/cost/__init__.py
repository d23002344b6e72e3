"""Consequences: seconds and bytes of a choice. Formulas take floats and numpy arrays alike."""
