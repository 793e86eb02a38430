"""The model: cells, the recurrence that runs them, and `CharRNN`, the character-level language model."""

from tfcharrnn.model.char_rnn import CharRNN

__all__ = ["CharRNN"]
