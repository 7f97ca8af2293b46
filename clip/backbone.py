"""Frozen CLIP backbones by name or file, built by open_clip with the sizes their own weights have."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform, merge_preprocess_dict
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn

from common.files import checksum

from .errors import ClipError
from .weights import SMALL_SHA256, URLS, openai_file, read_state_dict, small_file

VOCABULARY = 49408  # byte pairs, SOS and EOT of `tokenize`


class CLIP(open_clip.CLIP):
    """open_clip's CLIP with OpenAI's interface: `dtype`, images of any type, a `forward` that returns logits.

    Its LayerNorms compute in fp32, whatever the type of their input. Arguments are those of `open_clip.CLIP`, without
    `cast_dtype`.
    """

    def __init__(self, embed_dim: int, vision_cfg: dict, text_cfg: dict, quick_gelu: bool = False, **options):
        # open_clip chooses its LayerNormFp32 by a half cast_dtype, and uses this argument for nothing else.
        super().__init__(embed_dim, vision_cfg, text_cfg, quick_gelu, cast_dtype=torch.float16, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the image tower computes in: that of its first convolution."""
        return next(weight for weight in self.visual.parameters() if weight.dim() == 4).dtype

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(images, 3, H, W) -> (images, joint width)."""
        return super().encode_image(image.to(self.dtype), normalize)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(images, 3, H, W) and (texts, 77) -> logits (images, texts) and their transpose."""
        image = self.encode_image(image, normalize=True)
        logits = self.logit_scale.exp() * image @ self.encode_text(text, normalize=True).t()
        return logits, logits.t()


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
        precision: `fp32`, or `fp16` for half weights with LayerNorm in fp32.
        cache: folder for downloads, by default `~/.cache/clip` (open_clip's own for its tags).

    Raises:
        ClipError: the weights do not exist, cannot be read, or are not those of a CLIP.
    """
    if name in URLS:
        model = build(read_state_dict(openai_file(name, cache)), precision, name)
    elif name == "small":
        model = build(read_state_dict(small_file()), precision, name)
    elif ":" in name and name.split(":")[0] in open_clip.list_models():
        arch, tag = name.split(":", 1)
        model = from_open_clip(arch, tag, precision, cache)
    else:
        path = Path(name).expanduser()
        if not path.exists() and "/" not in name and "." not in name:
            remedy = f"give small, one of {', '.join(URLS)}, a weight file, or architecture:tag"
            raise ClipError(f"unknown backbone {name!r}", remedy)
        model = build(read_state_dict(path), precision, name, config_beside(path))
    if model.vocab_size != VOCABULARY or model.attn_mask is None or model.text_pool_type != "argmax":
        raise ClipError(
            f"the text tower of {name} reads other tokens than CLIP's, or reads them in another way",
            "choose a backbone with CLIP's tokeniser, causal attention and EOT",
        )
    size = model.visual.image_size
    model.visual.input_resolution = size if isinstance(size, int) or len(set(size)) > 1 else size[0]  # OpenAI's name
    return model.eval().requires_grad_(False)


def is_published(name: str) -> bool:
    """Whether a name stands for published weights, and not for a file of this machine."""
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
    path = Path(tag if arch in open_clip.list_models() else name).expanduser()
    if pretrained := open_clip.get_pretrained_cfg(arch, tag):
        try:
            path = Path(open_clip.download_pretrained(pretrained, cache_dir=cache))
        except Exception as error:  # of any library that open_clip downloads with
            raise ClipError(f"cannot download {name} ({first_line(error)})", "give a file") from error
    if not path.is_file():
        raise ClipError(f"backbone file {path} does not exist", "check its path", path)
    return checksum(path)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def config_beside(path: Path) -> dict | None:
    """The open_clip_config.json in the file's folder, where model hubs put it, or None."""
    config = path.with_name("open_clip_config.json")
    if not config.is_file():
        return None
    try:
        content = json.loads(config.read_text())
        return {"preprocess_cfg": {}} | content | {"model_cfg": dict(content["model_cfg"])}
    except (ValueError, KeyError, TypeError) as error:
        what = f"{config} is not a valid open_clip configuration ({error!r})"
        raise ClipError(what, "fix or delete it", config) from error


def from_open_clip(arch: str, tag: str, precision: str, cache: str | None) -> CLIP:
    """A model by open_clip's own names, with the activation that its weights were trained with."""
    pretrained = open_clip.get_pretrained_cfg(arch, tag)  # of a tag, otherwise empty
    file = Path(tag).expanduser()
    if not pretrained and not file.is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise ClipError(f"open_clip has no weights {tag!r} for {arch}, and no such file exists", f"it knows: {known}")
    config = open_clip.get_model_config(arch)
    if config.pop("custom_text", False) or "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ClipError(f"{arch} is not built like CLIP: prompts cannot enter its towers", "choose a CLIP architecture")
    config["quick_gelu"] = config.get("quick_gelu", False) or pretrained.get("quick_gelu", False)
    config["vision_cfg"]["timm_model_pretrained"] = False  # or timm would download weights of its own first
    try:
        model = new_clip(config, precision)
        open_clip.load_checkpoint(model, open_clip.download_pretrained(pretrained, cache_dir=cache) or str(file))
    except Exception as error:  # of any library that open_clip downloads or reads with
        raise ClipError(f"cannot load {arch}:{tag} ({first_line(error)})", "give another tag or file") from error
    open_clip.set_model_preprocess_cfg(
        model, merge_preprocess_dict(PreprocessCfg(), pretrained) | {"size": model.visual.image_size}
    )
    return model


def build(state: Mapping[str, Tensor], precision: str, source: str, config: dict | None = None) -> CLIP:
    """A CLIP with these weights. Without a configuration it is built like OpenAI's: QuickGELU, heads of width 64.

    Args:
        config: `model_cfg` (arguments of `open_clip.CLIP`) and `preprocess_cfg` (`mean` and `std` of the images).
    """
    not_weights = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # also in OpenAI's archives
    state = {key: value for key, value in state.items() if key not in not_weights}
    remedy = "give another file"
    try:
        model = new_clip(config["model_cfg"] if config else openai_config(state), precision)
        model.load_state_dict(state)
        for key, value in (config or {}).get("preprocess_cfg", {}).items():
            if key in ("mean", "std"):
                setattr(model.visual, f"image_{key}", tuple(value))
    except KeyError as error:
        raise ClipError(f"{source} is not a CLIP: it has no tensor {error}", remedy) from error
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ClipError(f"{source} is not a CLIP that open_clip can build ({detail})", remedy) from error
    return model


def new_clip(config: dict, precision: str) -> CLIP:
    """A CLIP of this configuration (arguments of `CLIP`) with random weights: fp32, or fp16 in open_clip's way."""
    model = CLIP(**config)
    if precision == "fp16" and isinstance(model.visual, TimmModel):
        model.half()
        for module in model.modules():
            if isinstance(module, LayerNormFp32):
                module.float()
    elif precision == "fp16":
        open_clip.convert_weights_to_lp(model)
    return model


def openai_config(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `open_clip.CLIP`, with all sizes taken from the tensors.

    Raises:
        KeyError: a tensor is missing; the error is its name.
    """

    def layers(prefix: str) -> int:
        depth = prefix.count(".")
        return len({key.split(".")[depth] for key in state if key.startswith(prefix)})

    if "visual.proj" in state:
        patch = state["visual.conv1.weight"].shape[-1]
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        width = state["visual.conv1.weight"].shape[0]
        vision = {
            "layers": layers("visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch,
            "image_size": grid * patch,
        }
    else:
        grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = {
            "layers": tuple(layers(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
            "width": state["visual.layer1.0.conv1.weight"].shape[0],
            "patch_size": None,
            "image_size": grid * 32,
        }
    width = state["ln_final.weight"].shape[0]
    text = {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "width": width,
        "heads": width // 64,
        "layers": layers("transformer.resblocks."),
    }
    return {
        "embed_dim": state["text_projection"].shape[1],
        "vision_cfg": vision,
        "text_cfg": text,
        "quick_gelu": True,
    }


def is_vit(model: nn.Module) -> bool:
    """Whether the image tower is a vision transformer with a class token: then prompts can be appended."""
    visual = model.visual
    return isinstance(visual, open_clip.transformer.VisionTransformer) and (
        visual.attn_pool is None and visual.pool_type == "tok"
    )
