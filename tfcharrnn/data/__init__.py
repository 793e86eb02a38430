"""Reading a data folder: from TFRecords to batches."""
