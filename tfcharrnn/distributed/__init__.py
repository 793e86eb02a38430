"""The processes and devices of a training run."""
