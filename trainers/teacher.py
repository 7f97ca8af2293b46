"""The frozen CLIP as a teacher: text features over many templates, computed once and kept on disk."""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from clip import TextPrompts, encode_text, tokenize

from .base import normalize

TEMPLATES = OPENAI_IMAGENET_TEMPLATES[:60]
ROWS = 256  # texts at a time


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "modular-prompt-learning"


@torch.no_grad()
def teacher_text_features(clip: nn.Module, classnames: list[str], device: torch.device) -> Tensor:
    """The mean over 60 templates of a class's text feature, then normalised (PromptSRC, Sec. 3.4).

    Kept in `cache_folder()` under a key made of the text tower's weights, the class names and the templates.

    Args:
        clip: the frozen backbone.
        classnames: C names.
        device: where the features shall be.

    Returns:
        (C, joint), fp32, normalised.
    """
    file = cache_folder() / f"teacher-{fingerprint(clip, classnames)}.safetensors"
    try:
        return load_file(file)["text_features"].to(device)
    except (OSError, SafetensorError, KeyError):  # not there yet, or damaged
        with torch.autocast(device.type, enabled=False):  # whatever the run's precision: other runs will read it
            features = compute(clip, classnames, device)
    store(file, features)
    return features


def compute(clip: nn.Module, classnames: list[str], device: torch.device) -> Tensor:
    texts = [template(name) for template in TEMPLATES for name in classnames]
    features = []
    for start in tqdm(range(0, len(texts), ROWS), desc="Teacher's text features", unit="batch"):
        ids = tokenize(texts[start : start + ROWS], clip.context_length).to(device)
        features.append(encode_text(clip, TextPrompts(ids)).float())
    return normalize(torch.cat(features).unflatten(0, (len(TEMPLATES), len(classnames))).mean(dim=0))


def fingerprint(clip: nn.Module, classnames: list[str]) -> str:
    digest = hashlib.sha256()
    for key, tensor in clip.state_dict().items():
        if not key.startswith("visual."):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    for text in (*classnames, *(template("{}") for template in TEMPLATES)):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]


def store(file: Path, features: Tensor) -> None:
    """Write the file whole or not at all; a cache that cannot be written is only slower."""
    partial = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            partial.write(save({"text_features": features.cpu()}))
        os.replace(partial.name, file)
    except OSError as error:
        print(f"The teacher's text features are not kept for next time ({error})")
        if partial:
            Path(partial.name).unlink(missing_ok=True)
