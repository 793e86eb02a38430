"""The files of a training run: run folder, checkpoints, logs, plots."""
