"""What can be chosen: mesh degrees, per-layer strategies, and the hard rules with their reasons."""
