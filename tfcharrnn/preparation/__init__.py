"""Prepares data folders of TFRecord shards from text files."""
