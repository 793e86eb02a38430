"""PyTorch's own recurrent layers, doing the work that benchmarks measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tfcharrnn.verification.workloads import Generation, Preparation, Training, Work, text


class Model(nn.Module):
    """One-hot symbols, recurrent layers, logits."""

    def __init__(self, work: Training | Generation):
        super().__init__()
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[work.cell]
        self.symbols = work.symbols
        self.layers = kind(work.symbols, work.hidden, work.layers)
        self.output = nn.Linear(work.hidden, work.symbols)

    def forward(self, ids: torch.Tensor, state: object = None) -> tuple[torch.Tensor, object]:
        """Ids `[time, batch]` to logits `[time, batch, symbols]`."""
        hidden, state = self.layers(nn.functional.one_hot(ids, self.symbols).float(), state)
        return self.output(hidden), state


def make(
    work: Work, device: str = "cpu", *, tf32: bool = False, compiled: bool = False
) -> tuple[Callable[[], object], int] | None:
    """Returns a function that does the work, and the number of steps per call.

    Args:
        work: what to do.
        device: cpu, or cuda, where cuDNN runs the layers.
        tf32: let float32 products be rounded to TF32.
        compiled: run the model under `torch.compile`.
    """
    if isinstance(work, Preparation):
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    network = Model(work).to(device)
    model = torch.compile(network) if compiled else network
    if not isinstance(work, Training):

        @torch.inference_mode()
        def generate() -> object:
            x, state, out = torch.zeros((1, work.streams), dtype=torch.long, device=device), None, []
            for _ in range(work.length):
                logits, state = model(x, state)
                x = torch.multinomial(torch.softmax(logits[0], -1), 1).T
                out.append(x)
            return torch.cat(out).cpu()

        return generate, 1
    rules = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    optimizer = rules[work.optimizer](network.parameters(), lr=0.001)
    ids = torch.from_numpy(text(work, 1)[0]).long().T.contiguous().to(device)

    def train() -> object:
        optimizer.zero_grad(set_to_none=True)
        logits, _ = model(ids[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return train, 1
