"""Reads data folders: from TFRecord shards to batches."""
