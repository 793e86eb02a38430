"""What a trained model does and how good it is: the HTML report, unit activations, baselines, novelty."""
