"""Files of backbone weights: OpenAI's names and their verified download, and the forms of a weight
file.
"""

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import open_clip
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoints import is_state_dict
from common.download import DownloadError, download
from common.errors import one_line
from common.files import checksum_once
from common.names import printable
from common.torch_files import is_torchscript, read_torch_file

from .errors import ClipError

CACHE = "~/.cache/clip"  # as in OpenAI's package
MAX_BYTES = 1 << 31  # of OpenAI's files; the largest has 1.3 GB

# OpenAI's names. The address, with the file's SHA-256 as its last folder, is in open_clip's table.
NAMES = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
)
URLS = {
    name: open_clip.get_pretrained_url(name.replace("/", "-").replace("@336px", "-336"), "openai")
    for name in NAMES
}

# The small CLIP of this project, for images of 64 x 64 pixels: see small.md.
SMALL = Path(__file__).with_name("small.safetensors")
SMALL_SHA256 = "38960b9b0791fc9d197707415e072283c59360db4bdaa2b2ff2ec434923956f9"


def published_sha256(name: str) -> str:
    """The SHA-256 of an OpenAI name's weights."""
    return URLS[name].split("/")[-2]


def small_file() -> Path:
    """The verified weight file of the backbone `small`.

    Raises:
        ClipError: the file is missing, or its SHA-256 is wrong.
    """
    if not SMALL.is_file() or checksum_once(SMALL) != SMALL_SHA256:
        fault = "is damaged (its SHA-256 differs)" if SMALL.is_file() else "is missing"
        remedy = f"restore it with `git checkout -- {SMALL.parent.name}/{SMALL.name}`"
        raise ClipError(f"{SMALL} {fault}", remedy, SMALL)
    return SMALL


def openai_file(name: str, cache: str | None = None) -> Path:
    """The verified weight file of an OpenAI name: the one in the folder `cache` (by default CACHE),
    or a new download.

    Raises:
        ClipError: the download fails, and received bytes are kept to be resumed; or it has another
            SHA-256.
    """
    url = URLS[name]
    path = Path(cache or CACHE).expanduser() / os.path.basename(url)
    partial = path.with_name(f"{path.name}.partial")
    lock = path.with_name(f"{path.name}.lock")  # several runs may start at the same time
    if is_published(path, name):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock), ExitStack() as stack:
            stack.callback(lock.unlink, missing_ok=True)
            if not is_published(path, name):
                download(url, partial, MAX_BYTES)
                if not is_published(partial, name):
                    partial.unlink()
                    raise DownloadError("its SHA-256 is wrong")
                partial.replace(path)
    except (OSError, DownloadError) as error:
        remedy = (
            f"run the same command again to resume, put a verified copy at {path}, or give a "
            "file as the backbone"
        )
        raise ClipError(f"cannot download {name} from {url} ({error})", remedy) from error
    return path


def is_published(path: Path, name: str) -> bool:
    """Whether a file is there and is the one of an OpenAI name."""
    if not path.is_file():
        return False
    if checksum_once(path) == published_sha256(name):
        return True
    print(f"{path} is not the published file (its SHA-256 differs)")
    return False


def regular_file(name: str | Path) -> Path:
    """The path of a weight file that exists and is neither a folder nor a pipe, a socket or a
    device.

    Raises:
        ClipError: there is no such file.
    """
    path = Path(os.path.expanduser(name))
    remedy = f"give a weight file, small, or one of {', '.join(URLS)}"
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (
        OSError,
        ValueError,
    ) as error:  # missing, no permission, a name that is too long, or NUL in it
        reason = getattr(error, "strerror", None) or error
        raise ClipError(
            f"backbone file {printable(path)} cannot be read ({reason})", remedy
        ) from error
    if not regular:
        raise ClipError(f"backbone file {path} is not a regular file", remedy)
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone file, by OpenAI's names.

    Accepted are plain state dicts (also in a training checkpoint's `state_dict`, also with
    `module.` before the names), `.safetensors`, and OpenAI's TorchScript archives, once their
    SHA-256 is a published one: loading an archive runs the code in it.

    Returns:
        tensors on the CPU, which may share memory with one another.

    Raises:
        ClipError: the file is missing, damaged, or of another form.
    """
    path = regular_file(path)
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif is_torchscript(path):
            content = read_archive(path)
        else:
            content = read_torch_file(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        if state is None or not is_state_dict(state):
            raise ClipError(
                f"backbone file {path} holds no state dict", "save `model.state_dict()` to it"
            )
        if sum(tensor.nbytes for tensor in state.values()) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
    except (ClipError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the readers fail in any way
        fault = f"backbone file {path} is damaged or not a weight file ({one_line(error)})"
        raise ClipError(fault, "download or copy it again") from error
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of one of OpenAI's TorchScript archives.

    Raises:
        ClipError: it is not one of them.
    """
    if checksum_once(path) not in map(published_sha256, URLS):
        fault = (
            f"backbone file {path} is a TorchScript archive, a program, and not one that OpenAI "
            "published"
        )
        raise ClipError(
            fault, "convert it: save its `state_dict()` with torch.save, and give that file", path
        )
    return torch.jit.load(path, map_location="cpu").state_dict()
