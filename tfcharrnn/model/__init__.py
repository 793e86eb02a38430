"""The model: cells, the recurrence that runs them, and the character RNN made of both."""
