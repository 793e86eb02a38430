"""Verification of the model: a NumPy reference and numerical gradient checks."""
