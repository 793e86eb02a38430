"""PyTorch's own recurrent layers, on the CPU."""

from tfcharrnn.verification.pytorch_peer import make

__all__ = ["make"]
