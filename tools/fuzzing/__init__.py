"""Damage to files, and the readers that must withstand it; `tools/fuzz.py` runs them."""
