"""Where backbone weights are: OpenAI's names and their verified download, and the forms a file may have."""

import hashlib
import os
import pickle
import zipfile
from http.client import HTTPException
from pathlib import Path

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import ClipError

CACHE = "~/.cache/clip"

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

# The small CLIP of this project, for 64 x 64 pixels: see small.md beside it.
SMALL = Path(__file__).with_name("small.safetensors")
SMALL_SHA256 = "38960b9b0791fc9d197707415e072283c59360db4bdaa2b2ff2ec434923956f9"


def small_file() -> Path:
    """The verified weight file of the backbone `small`.

    Raises:
        ClipError: it is missing or not what was published.
    """
    if not SMALL.is_file() or sha256(SMALL) != SMALL_SHA256:
        what = "is damaged (its SHA-256 differs)" if SMALL.is_file() else "is missing"
        raise ClipError(f"{SMALL} {what}: restore it with `git checkout -- {SMALL.parent.name}/{SMALL.name}`")
    return SMALL


def openai_file(name: str, cache: str | None = None) -> Path:
    """The verified weight file of an OpenAI name: the cached one, or a fresh download.

    Args:
        name: a key of `URLS`.
        cache: folder of the files; by default the one OpenAI's package uses, `~/.cache/clip`.

    Raises:
        ClipError: it can't be downloaded, or what came has another SHA-256. Nothing is left behind then.
    """
    url = URLS[name]
    path = Path(cache or CACHE).expanduser() / os.path.basename(url)
    expected = url.split("/")[-2]
    if path.is_file():
        if sha256(path) == expected:
            return path
        print(f"{path} is not the published file (its SHA-256 differs): downloading it again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch.hub writes beside the target, verifies, and only then renames.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (OSError, HTTPException, RuntimeError) as error:
        why = "its SHA-256 is wrong" if "invalid hash value" in str(error) else f"{error}"
        raise ClipError(
            f"cannot download {name} from {url} ({why}): put a verified copy at {path}, or give a file as the backbone"
        ) from None
    return path


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone file, by OpenAI's names.

    Read are OpenAI's TorchScript archives, plain state dicts (also inside a training checkpoint's `state_dict`, also
    with `module.` before the names) and `.safetensors`. No code of the file is run.

    Raises:
        ClipError: the file is missing, cut off, or none of these.
    """
    if not path.is_file():
        raise ClipError(f"backbone file {path} does not exist: give a weight file, small, or one of {', '.join(URLS)}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "unreadable")
        raise ClipError(f"backbone file {path} is damaged or no weight file ({reason}): get it again") from None
    except pickle.UnpicklingError:  # its text is a page of advice
        raise ClipError(
            f"backbone file {path} is damaged or holds more than tensors: save its state dict alone"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ClipError(f"backbone file {path} holds no state dict: save `model.state_dict()` there")
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive is a TorchScript module (it has a code folder) rather than a saved dict."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
