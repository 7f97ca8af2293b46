"""Samplers by name."""

from dassl.config.defaults import SAMPLERS
from dassl.utils import check_availability
from torch.utils.data import RandomSampler, SequentialSampler


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """Build a sampler over `data_source`.

    Args:
        sampler_type (str): "RandomSampler" or "SequentialSampler".
        data_source: list of `Datum`.
        cfg, batch_size, n_domain, n_ins: unused; published callers pass them.

    Raises:
        UsageError: the sampler is unknown.
    """
    check_availability(sampler_type, SAMPLERS)
    return RandomSampler(data_source) if sampler_type == "RandomSampler" else SequentialSampler(data_source)
