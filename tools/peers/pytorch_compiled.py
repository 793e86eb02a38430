"""PyTorch's own recurrent layers under `torch.compile`."""

from __future__ import annotations

import functools

from tfcharrnn.verification import pytorch_peer

make = functools.partial(pytorch_peer.make, compiled=True)
