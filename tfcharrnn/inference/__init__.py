"""Uses of a trained model: sampling, evaluation, interactive generation."""
