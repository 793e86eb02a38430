"""The workers of a training cluster."""
