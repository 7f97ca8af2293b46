"""Frozen CLIP backbones by name or file, built by open_clip with the sizes their own weights have."""

import os
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform, merge_preprocess_dict
from torch import nn

from common.errors import UsageError, one_line
from common.files import identity
from common.text import read_json

from .building import CLIP, build
from .errors import ClipError
from .weights import CACHE, SMALL_SHA256, URLS, openai_file, regular_file, sha256, small_file

VOCABULARY = 49408  # byte pairs, SOS and EOT of `tokenize`
MAX_CONFIG = 1 << 20  # bytes


def available_models() -> list[str]:
    """OpenAI's names, in the order of `clip.available_models()` in their package."""
    return list(URLS)


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, Callable]:
    """OpenAI's `clip.load`: a model and the transform of its images.

    Args:
        name: as for `load_backbone`.
        device: by default CUDA if available. On CUDA the weights are fp16, on a CPU fp32, as in OpenAI's package.
        jit: only False; an archive's traced graph is fixed to the device and precision of its export.
        download_root: folder for downloads, by default `~/.cache/clip`.

    Returns:
        (model in eval mode, transform from a PIL image to a (3, H, W) tensor).
    """
    if jit:
        raise ClipError("clip.load(jit=True) is not supported", "call it with jit=False")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_backbone(name, "fp32" if device.type == "cpu" else "fp16", download_root).to(device)
    mean, std = (getattr(model.visual, key, None) for key in ("image_mean", "image_std"))
    return model, image_transform(model.visual.image_size, is_train=False, mean=mean, std=std)


def load_backbone(name: str, precision: str = "fp32", cache: str | None = None) -> CLIP:
    """A CLIP on the CPU, in eval mode, its parameters frozen.

    Args:
        name: an OpenAI name (`ViT-B/16`; found in `cache` or downloaded to it), `small` (this project's own), a path to
            a weight file (`weights.read_state_dict`), or an open_clip pair `architecture:tag` or `architecture:file`.
        precision: `fp32`; `fp16` or `bf16` for weights of that type, with LayerNorm in fp32.
        cache: folder for downloads, by default `~/.cache/clip` (open_clip's own for its tags).

    Raises:
        ClipError: the weights do not exist, cannot be read, or are not those of a CLIP.
    """
    if name in URLS:
        model = build(openai_file(name, cache), precision, name)
    elif name == "small":
        model = build(small_file(), precision, name)
    elif ":" in name and name.split(":")[0] in open_clip.list_models():
        arch, tag = name.split(":", 1)
        model = from_open_clip(arch, tag, precision, cache)
    else:
        path = backbone_file(name)
        model = build(path, precision, name, config_beside(path))
    if model.vocab_size != VOCABULARY or model.attn_mask is None or model.text_pool_type != "argmax":
        raise ClipError(
            f"the text tower of {name} reads other tokens than CLIP's, or reads them in another way",
            "choose a backbone with CLIP's tokeniser, causal attention and EOT",
        )
    size = model.visual.image_size
    model.visual.input_resolution = size if isinstance(size, int) or len(set(size)) > 1 else size[0]  # OpenAI's name
    return model.eval().requires_grad_(False)


def check_backbone(name: str) -> None:
    """Check that a backbone's file exists, without reading it; one of OpenAI's that is missing is downloaded.

    Raises:
        ClipError: it does not exist, the download fails, or the name is unknown.
    """
    if name in URLS and not Path(CACHE, os.path.basename(URLS[name])).expanduser().is_file():
        openai_file(name)
    if not is_published(name) and name.partition(":")[0] not in open_clip.list_models():
        backbone_file(name)


def backbone_file(name: str) -> Path:
    """The weight file of a name that is not a published one."""
    if not os.path.lexists(os.path.expanduser(name)) and "/" not in name and "." not in name:
        remedy = f"give small, one of {', '.join(URLS)}, a weight file, or architecture:tag"
        raise ClipError(f"unknown backbone {name!r}", remedy)
    return regular_file(name)


def is_published(name: str) -> bool:
    """Whether the weights of a name are published ones, and not a file of this machine."""
    return name in URLS or name == "small" or bool(open_clip.get_pretrained_cfg(*name.partition(":")[::2]))


def weights_sha256(name: str, cache: str | None = None) -> str:
    """The SHA-256 of the weight file that `load_backbone` reads, in hexadecimal.

    Args:
        name, cache: as for `load_backbone`. Weights that are not there are downloaded, except OpenAI's.

    Raises:
        ClipError: the file does not exist, or the download fails.
    """
    if name in URLS:
        return URLS[name].split("/")[-2]  # `openai_file` reads no other
    if name == "small":
        return SMALL_SHA256
    arch, _, tag = name.partition(":")
    if pretrained := open_clip.get_pretrained_cfg(arch, tag):
        return sha256(identity(open_clip_file(name, pretrained, cache)))
    if arch not in open_clip.list_models():
        return sha256(identity(regular_file(name)))
    check_tag(arch, tag)
    return sha256(identity(regular_file(tag)))


def check_tag(arch: str, tag: str) -> None:
    """Raise ClipError for what is neither one of open_clip's tags for an architecture nor a file."""
    if not open_clip.get_pretrained_cfg(arch, tag) and not os.path.lexists(os.path.expanduser(tag)):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise ClipError(f"open_clip has no weights {tag!r} for {arch}, and no such file exists", f"it knows: {known}")


def open_clip_file(name: str, pretrained: dict, cache: str | None) -> Path:
    """The downloaded file of one of open_clip's tags."""
    try:
        return Path(open_clip.download_pretrained(pretrained, cache_dir=cache))
    except Exception as error:  # of any library that open_clip downloads with
        raise ClipError(f"cannot download {name} ({one_line(error)})", "give a file") from error


def config_beside(path: Path) -> dict | None:
    """The open_clip_config.json in the file's folder, where model hubs put it, or None."""
    config = path.with_name("open_clip_config.json")
    if not config.is_file():
        return None
    try:
        content = read_json(config, MAX_CONFIG)
        towers = [content["model_cfg"][key] for key in ("vision_cfg", "text_cfg")]
        if not all(isinstance(part, dict) for part in (*towers, content.get("preprocess_cfg", {}))):
            raise TypeError("vision_cfg, text_cfg and preprocess_cfg must be objects")
        return content
    except (UsageError, KeyError, TypeError, AttributeError) as error:
        what = f"{config} is not a valid open_clip configuration ({type(error).__name__}: {one_line(error)})"
        raise ClipError(what, "fix or delete it", config) from error


def from_open_clip(arch: str, tag: str, precision: str, cache: str | None) -> CLIP:
    """A model by open_clip's own names, with the activation that its weights were trained with."""
    check_tag(arch, tag)
    pretrained = open_clip.get_pretrained_cfg(arch, tag)  # of a tag, otherwise empty
    config = open_clip.get_model_config(arch)
    if config.pop("custom_text", False) or "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ClipError(f"{arch} is not built like CLIP: prompts cannot enter its towers", "choose a CLIP architecture")
    config["quick_gelu"] = config.get("quick_gelu", False) or pretrained.get("quick_gelu", False)
    name = f"{arch}:{tag}"
    path = open_clip_file(name, pretrained, cache) if pretrained else regular_file(tag)
    model = build(path, precision, name, {"model_cfg": config}, resize=True)
    open_clip.set_model_preprocess_cfg(
        model, merge_preprocess_dict(PreprocessCfg(), pretrained) | {"size": model.visual.image_size}
    )
    return model


def is_vit(model: nn.Module) -> bool:
    """Whether the image tower is a vision transformer with a class token: then prompts can be appended."""
    visual = model.visual
    return isinstance(visual, open_clip.transformer.VisionTransformer) and (
        visual.attn_pool is None and visual.pool_type == "tok"
    )
