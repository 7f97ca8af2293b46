"""Registry, logger, meters, checkpoints, seeds and other helpers.

Names are imported when they are first used: a command that needs no torch does not wait for it.
"""

from importlib import import_module


def lazy_names(package, modules):
    """The ``__getattr__`` and ``__all__`` of a package (PEP 562).

    Args:
        package (str): its name.
        modules (dict): module of the package -> the names that the package takes from it.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name):
        if name in modules:
            return import_module(f"{package}.{name}")
        if name in homes:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, sorted(homes)


__getattr__, __all__ = lazy_names(
    __name__,
    {
        "checkpoint": "load_checkpoint load_pretrained_weights resume_from_checkpoint "
        "save_checkpoint",
        "errors": "ChangedImageError ImageError MissingFileError UnknownNameError UsageError",
        "images": "decoders read_image",
        "logger": "Logger setup_logger",
        "tools": "AverageMeter MetricMeter Registry check_availability check_isfile "
        "collect_env_info count_num_param "
        "listdir_nohidden mkdir_if_missing read_json set_random_seed tolist_if_not write_json",
    },
)
