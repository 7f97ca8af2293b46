"""Samplers by name: the published place of `build_sampler`."""

from dassl.data.data_manager import build_sampler

__all__ = ["build_sampler"]
