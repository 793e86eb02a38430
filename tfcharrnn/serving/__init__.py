"""Model formats of other programs: exports, and imports that never run code from a file."""
