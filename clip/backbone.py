"""Frozen CLIP backbones by name or file, built by open_clip with the sizes their own weights
have.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform, merge_preprocess_dict

from common.errors import closest, one_line
from common.files import checksum_once
from common.names import printable

from . import hub, vision_only
from .building import CLIP, build
from .configurations import checked
from .errors import ClipError
from .tokenizer import Tokenizer
from .weights import URLS, openai_file, published_sha256, regular_file, small_file

VOCABULARY = 49408  # byte pairs, SOS and EOT of `tokenize`
# How OpenAI's models read images, by the keys of INPUT. Published YAML files state it for every
# backbone.
OF_CLIP: dict[str, Any] = {
    "SIZE": (224, 224),
    "INTERPOLATION": "bicubic",
    "RESIZE_MODE": "shortest",
    "PIXEL_MEAN": OPENAI_DATASET_MEAN,
    "PIXEL_STD": OPENAI_DATASET_STD,
}


# These keys in open_clip's configurations
STATED = {
    "PIXEL_MEAN": "mean",
    "PIXEL_STD": "std",
    "INTERPOLATION": "interpolation",
    "RESIZE_MODE": "resize_mode",
}


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
        device: by default CUDA if available. On CUDA the weights are fp16, on a CPU fp32, as in
            OpenAI's package.
        jit: only False; an archive's traced graph is fixed to the device and precision of its
            export.
        download_root: folder for downloads, by default `~/.cache/clip`.

    Returns:
        (model in eval mode, transform from a PIL image to a (3, H, W) tensor).
    """
    if jit:
        raise ClipError("clip.load(jit=True) is not supported", "call it with jit=False")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_backbone(name, "fp32" if device.type == "cpu" else "fp16", download_root).to(
        device
    )
    options: dict[str, Any] = {
        name: getattr(model.visual, f"image_{name}", None) for name in ("mean", "std")
    }
    stated = preprocessing(name, download_root)
    options |= {
        key.lower(): stated[key] for key in ("INTERPOLATION", "RESIZE_MODE") if key in stated
    }
    return model, image_transform(model.visual.image_size, is_train=False, **options)


@torch.inference_mode(False)  # whose tensors do not count their changes
def load_backbone(name: str, precision: str = "fp32", cache: str | None = None) -> CLIP:
    """A CLIP or another model of open_clip on the CPU, in eval mode, its parameters frozen, with
    its tokeniser.

    Args:
        name: an OpenAI name (`ViT-B/16`; found in `cache` or downloaded to it), `small` (this
            project's own), a path to a weight file (`weights.read_state_dict`), an open_clip pair
            `architecture:tag` or `architecture:file`, `hf-hub:OWNER/NAME`, a folder of the form
            of such a repository, or `timm:NAME` or `timm:NAME:FILE`, an image tower alone.
        precision: `fp32`; `fp16` or `bf16` for weights of that type, with LayerNorm in fp32.
        cache: folder for downloads, by default `~/.cache/clip` (open_clip's own for its tags).

    Raises:
        ClipError: the weights or the tokeniser do not exist, cannot be read, or are of another
            architecture.
    """
    path = weight_file(name, cache)
    config: Any = open_clip_config(name, cache)
    if name.startswith(vision_only.PREFIX):
        model = vision_only.build(name, path, precision)
    elif config is None:
        model = build(path, precision, name)
        model.tokenizer = Tokenizer(model.context_length)
    else:
        words = config["model_cfg"]["text_cfg"]
        repo = "" if is_pair(name) else None
        if name.startswith(hub.PREFIX):
            repo = name.removeprefix(hub.PREFIX)
        config["model_cfg"]["text_cfg"] = hub.text_model(words, path.parent, repo)
        model = build(path, precision, name, config, resize=is_pair(name))
        words = {"context_length": model.context_length} | words
        model.tokenizer = hub.tokenizer(words, path.parent, repo)
    if type(model.tokenizer) is Tokenizer and model.vocab_size != VOCABULARY:
        fault = f"the text tower of {name} reads other tokens than CLIP's"
        remedy = "choose a backbone whose configuration names its tokeniser (hf_tokenizer_name)"
        raise ClipError(fault, remedy)
    size = model.visual.image_size
    if config and is_pair(name):
        open_clip.set_model_preprocess_cfg(model, config["preprocess_cfg"] | {"size": size})
    # OpenAI's name
    model.visual.input_resolution = size if isinstance(size, int) or len(set(size)) > 1 else size[0]
    return model.eval().requires_grad_(False)


def weight_file(name: str, cache: str | None = None) -> Path:
    """The weight file of a backbone, downloaded if it is a published one that is not there; as for
    `load_backbone`.

    Raises:
        ClipError: it does not exist, is not a regular file, or the name is unknown; the download
            fails.
    """
    if name in URLS:
        return openai_file(name, cache)
    if name == "small":
        return small_file()
    if name.startswith(hub.PREFIX):
        return hub.repository(name, cache)
    if name.startswith(vision_only.PREFIX):
        return vision_only.weight_file(name, cache)
    if is_pair(name):
        return open_clip_file(name, cache)
    path = Path(os.path.expanduser(name))
    if name and is_there(path):
        return hub.in_folder(path) if path.is_dir() else regular_file(name)
    raise unknown(name)


def unknown(name: str) -> ClipError:
    """The error for a name of nothing, with the name that comes nearest to it."""
    models = open_clip.list_models()
    arch, colon, tag = name.partition(":")
    if name in models:
        tag = next(iter(open_clip.list_pretrained_tags_by_model(name)), "FILE")
        return ClipError(
            f"{name} is an architecture without weights",
            f"add a tag or a file, such as {name}:{tag}",
        )
    if colon and "/" not in arch:
        near = closest(arch, ["hf-hub", *models])
        remedy = (
            f"did you mean {near}:{printable(tag)}?"
            if near
            else "open_clip.list_models() names all"
        )
        return ClipError(f"this version of open_clip has no architecture {arch!r}", remedy)
    near = closest(name, ["small", *URLS] if "/" in name else ["small", *URLS, *models])
    remedy = (
        "give a weight file, a folder, architecture:tag, hf-hub:OWNER/NAME, small, or one of "
        f"{', '.join(URLS)}"
    )
    remedy = f"did you mean {near}?" if near else remedy
    if "/" in name or "." in name:
        return ClipError(f"backbone file {printable(name)} does not exist", remedy)
    return ClipError(f"unknown backbone {name!r}", remedy)


def preprocessing(name: str, cache: str | None = None) -> dict[str, Any]:
    """What open_clip's configuration of a backbone says of its images, by the keys of INPUT; empty
    without one.

    Raises:
        ClipError: as for `weight_file`; UsageError: the configuration is damaged.
    """
    config = open_clip_config(name, cache)
    if not config:
        return {}
    try:
        size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
        stated = config.get("preprocess_cfg", {})
        image = {key: stated[name] for key, name in STATED.items() if name in stated}
        return {"SIZE": [size, size] if isinstance(size, int) else list(size)} | image
    except (KeyError, TypeError, AttributeError) as error:
        fault = f"{hub.CONFIG} of {name} is damaged ({one_line(error)})"
        raise ClipError(fault, "copy or download it again") from error


def is_there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # NUL in the name
        return False


def is_pair(name: str) -> bool:
    """Whether a name is one of open_clip's architectures with a tag or a file."""
    arch, colon, _ = name.partition(":")
    return bool(colon) and arch in open_clip.list_models()


def is_published(name: str) -> bool:
    """Whether the weights of a name are published ones, and not a file of this machine."""
    of_timm = name.startswith(vision_only.PREFIX) and name.count(":") == 1
    return is_known(name) or of_timm or name.startswith(hub.PREFIX)


def is_known(name: str) -> bool:
    """Whether anybody may name these weights: OpenAI's, `small`, or those of a tag of open_clip."""
    tag = open_clip.get_pretrained_cfg(*name.partition(":")[::2])
    return name in URLS or name == "small" or bool(tag)


def weights_sha256(name: str, cache: str | None = None) -> str:
    """The SHA-256 of the weight file that `load_backbone` reads with this `cache`, in hexadecimal.

    Raises:
        ClipError: as for `weight_file`; but OpenAI's weights are not downloaded.
    """
    return published_sha256(name) if name in URLS else checksum_once(weight_file(name, cache))


def open_clip_file(name: str, cache: str | None) -> Path:
    """The file of a pair, which open_clip downloads if it has that tag."""
    arch, tag = name.split(":", 1)
    pretrained = open_clip.get_pretrained_cfg(arch, tag)
    if not pretrained and not (tag and is_there(Path(os.path.expanduser(tag)))):
        tags = open_clip.list_pretrained_tags_by_model(arch)
        near = closest(tag, tags)
        remedy = (
            f"did you mean {arch}:{near}?" if near else f"it knows: {', '.join(tags) or 'none'}"
        )
        raise ClipError(
            f"open_clip has no weights {tag!r} for {arch}, and no such file exists", remedy
        )
    if not pretrained:
        return regular_file(tag)
    remedy = f"check the connection, or give a file with these weights: {arch}:FILE"
    repo, _, file = str(pretrained.get("hf_hub", "")).rpartition("/")
    if repo:
        files = [str(Path(file).with_suffix(".safetensors")), file] if file else hub.WEIGHTS
        return hub.hub_file(repo, files, cache, remedy)
    try:
        return Path(open_clip.download_pretrained(pretrained, cache_dir=cache))
    except Exception as error:  # of any library that open_clip downloads with
        raise ClipError(f"cannot download {name} ({one_line(error)})", remedy) from error


def open_clip_config(name: str, cache: str | None = None) -> dict | None:
    """The content of open_clip's configuration of a name: `model_cfg`, and `preprocess_cfg` of the
    images.

    None for the names of OpenAI and for a weight file without a configuration beside it.

    Raises:
        ClipError: as for `weight_file`; or the configuration is damaged.
    """
    if name in URLS or name == "small":
        return None
    if name.startswith(vision_only.PREFIX):
        return vision_only.configuration(name)
    if is_pair(name):
        arch, tag = name.split(":", 1)
        pretrained = open_clip.get_pretrained_cfg(arch, tag)  # of a tag, otherwise empty
        model: Any = open_clip.get_model_config(arch)
        trunk: Any = timm.get_pretrained_cfg(model["vision_cfg"].get("timm_model_name") or "")
        if trunk and trunk.fixed_input_size:
            # open_clip's ViTamin-XL-384 says 256
            model["vision_cfg"]["image_size"] = trunk.input_size[-1]
        # The activation that the weights were trained with.
        model["quick_gelu"] = model.get("quick_gelu", False) or pretrained.get("quick_gelu", False)
        stated = pretrained or common_preprocessing(arch)
        return {
            "model_cfg": model,
            "preprocess_cfg": merge_preprocess_dict(PreprocessCfg(), stated),
        }
    is_hub = name.startswith(hub.PREFIX)
    file = (
        hub.config_file(name, cache) if is_hub else weight_file(name, cache).with_name(hub.CONFIG)
    )
    return checked(file) if file.is_file() else None


@cache  # it is printed once
def common_preprocessing(arch: str) -> dict[str, Any]:
    """How all published weights of an architecture read images, for a file with others; empty if
    they differ, which is printed, or if there are none.
    """
    tags = open_clip.list_pretrained_tags_by_model(arch)
    stated = [open_clip.get_pretrained_cfg(arch, tag) for tag in tags]
    keys = STATED.values()
    read = [{key: cfg[key] for key in keys if key in cfg} for cfg in stated]
    of_tags = [merge_preprocess_dict(PreprocessCfg(), one) for one in read]
    if all(one == of_tags[0] for one in of_tags):
        return read[0] if read else {}
    print(f"Weights of {arch} read images in several ways: INPUT is that of OpenAI's CLIP")
    return {}
