"""The training loop and everything around a step: optimizers, metrics, callbacks, many devices."""
