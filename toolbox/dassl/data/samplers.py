"""Samplers by name."""

from dassl.config.defaults import SAMPLERS
from dassl.utils import check_availability
from torch.utils.data import RandomSampler, SequentialSampler


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """A "RandomSampler" or "SequentialSampler" over `data_source`; UsageError for another `sampler_type`.

    The other parameters are unused; published callers pass them.
    """
    check_availability(sampler_type, SAMPLERS)
    return RandomSampler(data_source) if sampler_type == "RandomSampler" else SequentialSampler(data_source)
