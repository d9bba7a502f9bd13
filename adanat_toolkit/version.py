"""The version of this source, which the package and its lower floors both read."""

__version__ = "0.1.0"
