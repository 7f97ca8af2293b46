"""The machine and the software of a run, for its log and its results."""

import os
import platform
from pathlib import Path

import numpy as np
import open_clip
import PIL
import torch
import torchvision

DRIVER = Path("/proc/driver/nvidia/version")  # exists where NVIDIA's driver is loaded


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the results depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
    }


def environment() -> dict[str, str]:
    """The facts that a bug report needs."""
    facts = versions()
    facts["numpy"] = np.__version__
    facts["Pillow"] = PIL.__version__
    facts["system"] = f"{platform.system()} {platform.release()} ({platform.machine()})"
    capability = torch.backends.cpu.get_cpu_capability()
    facts["processor"] = f"{capability}, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    facts["GPU"] = f"{', '.join(gpus) or 'none'} ({libraries})"
    return facts


def unused_gpu() -> str:
    """Why torch does not use an NVIDIA GPU of this machine, in its own words; empty without one, or
    if it is hidden.
    """
    if (
        torch.cuda.is_available()
        or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
        or not DRIVER.is_file()
    ):
        return ""
    try:
        torch.cuda.init()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # a driver too old, or a build of torch for CPUs
        return str(error).split(". ")[0].splitlines()[0]
    return "no reason is known"
