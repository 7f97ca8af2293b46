"""The machine and the software of a run, for its log and its results."""

import platform
from importlib.metadata import version

import torch

PACKAGES = {"torchvision": "torchvision", "open_clip": "open_clip_torch"}  # importing them takes time


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the figures depend on."""
    libraries = {name: version(package) for name, package in PACKAGES.items()}
    return {"python": platform.python_version(), "torch": torch.__version__, **libraries}


def environment() -> dict[str, str]:
    """The facts that a bug report needs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        **versions(),
        "numpy": version("numpy"),
        "Pillow": version("pillow"),
        "system": platform.platform(),
        "processor": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "GPU": f"{', '.join(gpus) or 'none'} (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})",
    }
