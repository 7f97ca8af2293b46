"""Registry, logger, meters, checkpoints, seeds and other helpers."""

from .checkpoint import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
from .errors import ImageError, MissingFileError, UnknownNameError, UsageError
from .logger import Logger, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry
from .tools import (
    check_availability,
    check_isfile,
    collect_env_info,
    download_url,
    get_file_extension,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    tolist_if_not,
    write_json,
)
from .torchtools import count_num_param, init_network_weights, open_all_layers, open_specified_layers

__all__ = [
    "AverageMeter",
    "ImageError",
    "Logger",
    "MetricMeter",
    "MissingFileError",
    "Registry",
    "UnknownNameError",
    "UsageError",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "download_url",
    "get_file_extension",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]
