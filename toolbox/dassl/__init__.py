"""A maintained implementation of the Dassl toolbox's public API for current PyTorch."""

__version__ = "0.7.0+mpl"
