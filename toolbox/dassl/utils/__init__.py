"""Registry, logger, meters, checkpoints, seeds and other helpers."""

from .lazy import lazy_names

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "checkpoint": "load_checkpoint load_pretrained_weights resume_from_checkpoint save_checkpoint",
        "errors": "ImageError MissingFileError UnknownNameError UsageError",
        "images": "read_image",
        "logger": "Logger setup_logger",
        "meters": "AverageMeter MetricMeter",
        "registry": "Registry",
        "tools": "check_availability check_isfile collect_env_info count_num_param listdir_nohidden "
        "mkdir_if_missing read_json set_random_seed tolist_if_not write_json",
    },
)
