"""A model in the formats of other programs: exports, and imports that trust no file."""
