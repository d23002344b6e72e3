"""Measured profiles of other tools: strict readers, and the cost tables they fill."""
