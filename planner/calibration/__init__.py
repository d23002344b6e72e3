"""Measured runs against predictions: reading cases, pricing them, scoring; and fitting constants."""
