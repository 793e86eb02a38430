"""One module for each library that `tools/bench.py` measures, all doing the same work."""
