"""The oracle of the tests: the model in NumPy, and numerical gradient checks."""
