"""The version of qsm."""

__version__ = "0.1.0"
