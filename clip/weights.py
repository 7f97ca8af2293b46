"""Files of backbone weights: OpenAI's names and their verified download, and the forms of a weight file."""

import os
import pickle
import zipfile
from pathlib import Path

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.download import TransferError, WrongFile, transfer
from common.files import checksum, replacing

from .errors import ClipError

CACHE = "~/.cache/clip"
MAX_BYTES = 1 << 31  # of OpenAI's files, the largest of which has 1.3 GB

# OpenAI's names -> open_clip's. The address, with the file's SHA-256 as its last folder, is in open_clip's table.
OPENAI_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
URLS = {name: open_clip.get_pretrained_url(arch, "openai") for name, arch in OPENAI_NAMES.items()}

# The small CLIP of this project, for images of 64 x 64 pixels: see small.md.
SMALL = Path(__file__).with_name("small.safetensors")
SMALL_SHA256 = "38960b9b0791fc9d197707415e072283c59360db4bdaa2b2ff2ec434923956f9"


def small_file() -> Path:
    """The verified weight file of the backbone `small`.

    Raises:
        ClipError: the file is missing, or its SHA-256 is wrong.
    """
    if not SMALL.is_file() or checksum(SMALL) != SMALL_SHA256:
        what = "is damaged (its SHA-256 differs)" if SMALL.is_file() else "is missing"
        remedy = f"restore it with `git checkout -- {SMALL.parent.name}/{SMALL.name}`"
        raise ClipError(f"{SMALL} {what}", remedy, SMALL)
    return SMALL


def openai_file(name: str, cache: str | None = None) -> Path:
    """The verified weight file of an OpenAI name: the cached one, or a new download.

    Args:
        name: a key of `URLS`.
        cache: folder of the files; by default that of OpenAI's package, `~/.cache/clip`.

    Raises:
        ClipError: the download fails or has another SHA-256; no file is left behind.
    """
    url = URLS[name]
    path = Path(cache or CACHE).expanduser() / os.path.basename(url)
    expected = url.split("/")[-2]
    if path.is_file():
        if checksum(path) == expected:
            return path
        print(f"{path} is not the published file (its SHA-256 differs): downloading it again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            download(url, partial, expected)
    except (OSError, ClipError) as error:
        remedy = f"put a verified copy at {path}, or give a file as the backbone"
        raise ClipError(f"cannot download {name} from {url} ({error})", remedy) from error
    return path


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file and verify it.

    Raises:
        ClipError: the connection failed, the file cannot be written, or its SHA-256 is wrong.
    """
    try:
        transfer(url, path, os.path.basename(url), 0, MAX_BYTES)
    except (TransferError, WrongFile) as error:
        raise ClipError(str(error)) from error
    if checksum(path) != sha256:
        raise ClipError("its SHA-256 is wrong")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone file, by OpenAI's names.

    Accepted are OpenAI's TorchScript archives, plain state dicts (also in a training checkpoint's `state_dict`, also
    with `module.` before the names) and `.safetensors`. No code in the file is run.

    Raises:
        ClipError: the file is missing, damaged, or of another form.
    """
    if not path.is_file():
        remedy = f"give a weight file, small, or one of {', '.join(URLS)}"
        raise ClipError(f"backbone file {path} does not exist", remedy, path)
    state: object
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "unreadable")
        what = f"backbone file {path} is damaged or not a weight file ({reason})"
        raise ClipError(what, "download or copy it again", path) from error
    except pickle.UnpicklingError as error:  # its text is a page of advice
        what = f"backbone file {path} is damaged or holds more than tensors"
        raise ClipError(what, "save only its state dict", path) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ClipError(f"backbone file {path} holds no state dict", "save `model.state_dict()` to it", path)
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive is a TorchScript module (it has a code folder) rather than a saved dict."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
