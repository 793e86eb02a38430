"""A trained model at work: sampling, evaluation, an interactive session."""
