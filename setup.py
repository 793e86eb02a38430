"""Builds the package; all metadata is in setup.cfg."""

import setuptools

setuptools.setup()
