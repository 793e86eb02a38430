"""Analysis of a trained model: the HTML report, unit activations, baselines, novelty."""
