"""Builds a CLIP from the tensors of a weight file, by open_clip, with the sizes that the tensors
have.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from common.errors import one_line
from common.files import identity

from . import plain
from .anatomy import hugging_face, reads_as_clip, takes_prompts
from .errors import ClipError
from .schedule import TextPrompts
from .weights import read_state_dict, regular_file

# In OpenAI's archives and traces
NOT_WEIGHTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
)
NO_TEXT = {"layers": 1, "width": 1, "heads": 1, "vocab_size": 1, "context_length": 1}
HF_DEFAULTS = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}  # open_clip's


class CLIP(open_clip.CLIP):
    """open_clip's CLIP with OpenAI's interface: `dtype`, images of any type, a `forward` that
    returns logits.

    Its LayerNorms compute in fp32, whatever the type of their input. Arguments are those of
    `open_clip.CLIP`, without `cast_dtype`.
    """

    def __init__(
        self, embed_dim: int, vision_cfg: dict, text_cfg: dict, quick_gelu: bool = False, **options
    ):
        of_features = {"output_tokens": False}  # not of a text decoder, as CoCa's is
        words = NO_TEXT if text_cfg.get("hf_model_name") else text_cfg | of_features
        # open_clip chooses its LayerNormFp32 by a half cast_dtype, and uses this argument for
        # nothing else.
        super().__init__(
            embed_dim,
            vision_cfg | of_features,
            words,
            quick_gelu,
            cast_dtype=torch.float16,
            **options,
        )
        self.visual.output_dim = embed_dim  # timm's towers do not say it
        if isinstance(self.visual, TimmModel) and takes_prompts(self):
            # open_clip's ViTamin-XL-384 says 256
            self.visual.image_size = self.visual.trunk.patch_embed.img_size
        self.cls_emb = (
            nn.Parameter(torch.zeros(text_cfg["width"])) if text_cfg.get("embed_cls") else None
        )
        self.text_pad_id = text_cfg.get("pad_id", 0)
        if words is NO_TEXT:
            self.read_by_hugging_face(embed_dim, text_cfg)

    def read_by_hugging_face(self, embed_dim: int, text_cfg: dict) -> None:
        """Replace the text tower by one of transformers, whose sizes `hub.text_model` has read."""
        from transformers import AutoConfig

        for name in (
            "transformer",
            "token_embedding",
            "positional_embedding",
            "ln_final",
            "text_projection",
        ):
            delattr(self, name)
        pooler, proj = (text_cfg.get(key, default) for key, default in HF_DEFAULTS.items())
        config = AutoConfig.for_model(**text_cfg["hf_model_name"])
        self.text = HFTextEncoder("", embed_dim, config, pooler, proj)
        if config.is_encoder_decoder:
            self.text.transformer = self.text.transformer.encoder
        elif pooler != "cls_pooler":
            self.text.transformer.pooler = None
        # By the name that CLIP's has, registered only once
        self.__dict__["transformer"] = self.text.transformer
        self.context_length = text_cfg.get("context_length", 77)
        self.text_pool_type = str(pooler)
        self.vocab_size = self.text.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """The type that the image tower computes in: that of its first convolution."""
        return next(weight for weight in self.visual.parameters() if weight.dim() == 4).dtype

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(images, 3, H, W) -> (images, joint width)."""
        return super().encode_image(image.to(self.dtype), normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(texts, context length) -> (texts, joint width)."""
        if reads_as_clip(self):
            return super().encode_text(text, normalize)
        features = plain.encode_text(self, TextPrompts(text))
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(images, 3, H, W) and (texts, 77) -> logits (images, texts) and their transpose."""
        image = self.encode_image(image, normalize=True)
        logits = self.logit_scale.exp() * image @ self.encode_text(text, normalize=True).t()
        return logits, logits.t()


def keep_backbones(count: int) -> None:
    """Keep the `count` backbones that this process uses last, so that its next run need not read
    their files.
    """
    global build_cached
    build_cached = lru_cache(count)(build_uncached)


def build(
    path: Path, precision: str, source: str, config: dict | None = None, resize: bool = False
) -> CLIP:
    """`build_uncached`, or a copy of a backbone that `keep_backbones` keeps.

    Raises:
        ClipError: as for `build_uncached`, or there is no such file.
    """
    path = regular_file(path)
    # A link has the suffix of the file
    file = (
        os.path.abspath(path),
        *identity(path)[1:],
        torch.get_default_dtype(),
    )
    model = build_cached(file, precision, source, json.dumps(config), resize)
    return deepcopy(model) if build_cached.cache_parameters()["maxsize"] else model


def build_uncached(
    file: tuple, precision: str, source: str, config_text: str, resize: bool
) -> CLIP:
    """A CLIP with the weights of a file. Without a configuration it is built like OpenAI's:
    QuickGELU, heads of 64.

    The generators of random numbers end where they were, so that the prompts of a seed do not
    depend on the backbone.

    Args:
        file: the path of a file for `read_state_dict`, and facts that change when it is replaced.
        precision: `fp32`; `fp16` or `bf16` for weights of that type, with LayerNorm in fp32.
        source: name of the weights, for errors.
        config_text: null, or JSON with `model_cfg` (arguments of `open_clip.CLIP`) and
            `preprocess_cfg` (`mean` and `std` of the images).
        resize: whether to fit position embeddings of other lengths to the configuration, as
            open_clip does.

    Raises:
        ClipError: the file cannot be read, or a tensor is missing, is one too many, has another
            shape or is not finite.
    """
    config = json.loads(config_text)
    state = read_state_dict(Path(file[0]))
    remedy = "give another file"
    try:
        arguments = of_clip(config["model_cfg"]) if config else openai_config(state)
        model = empty_clip(arguments, precision)
        state = convert_state_dict(model, state)
        if config:
            state = unpacked(state, model)
            set_statistics(model, config.get("preprocess_cfg", {}))
        fill_model(model, state, resize)
    except KeyError as error:
        raise ClipError(f"{source} is not a CLIP: {error} is missing", remedy) from error
    # open_clip checks nothing: wrong sizes raise errors of many kinds deep in it
    except Exception as error:
        # It may also be a bug, or another open_clip
        reason = f"{type(error).__name__}: {one_line(error)}"
        fault = f"{source} is not a CLIP that open_clip can build ({reason})"
        raise ClipError(fault, remedy) from error
    return model


build_cached = lru_cache(0)(build_uncached)


def fill_model(model: CLIP, state: dict[str, Tensor], resize: bool) -> None:
    """Move the tensors of a file to the weights of these names, one at a time, so that memory never
    holds all twice.

    Raises:
        KeyError: one is missing; ValueError: one is too many, or as for `fill`.
    """
    weights = model.state_dict()
    for key in state.keys() - weights.keys():
        if key.split(".")[-1] in NOT_WEIGHTS:
            del state[key]
    for key in state.keys() & weights.keys() & {"logit_scale", "logit_bias"}:
        state[key] = state[key].reshape(weights[key].shape)
    if resize:
        for key, weight in weights.items():
            if key.endswith("positional_embedding"):
                state[key] = state[key].float()
            else:
                check_weight(key, weight, state[key])
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    for key, weight in weights.items():
        fill(key, weight, state.pop(key))
    if state:
        raise ValueError(f"it has more tensors than this model, such as {min(state)}")


def set_statistics(model: CLIP, preprocess_cfg: Mapping[str, Any]) -> None:
    """Keep the mean and the standard deviation of the images; ValueError for other values."""
    for key in preprocess_cfg.keys() & {"mean", "std"}:
        setattr(model.visual, f"image_{key}", three_numbers(key, preprocess_cfg[key]))


def check_weight(name: str, weight: Tensor, value: Tensor) -> None:
    """Compare a tensor of a file with the weight of that name.

    Raises:
        ValueError: it is of another shape, or of integers and should not be, or the other way
            round.
    """
    if value.shape != weight.shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(weight.shape)}")
    if value.is_floating_point() != weight.is_floating_point():
        raise ValueError(f"{name} has the type {value.dtype}, not {weight.dtype}")


def fill(name: str, weight: Tensor, value: Tensor) -> None:
    """Copy a tensor of a file to the weight of that name; ValueError as for `check`, or if it is
    not finite.
    """
    check_weight(name, weight, value)
    weight.copy_(value)
    # NaN and inf survive the minimum and the maximum, so no boolean tensor is needed.
    if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
        raise ValueError(f"{name} is not finite")


class Undrawn(TorchFunctionMode):
    """Leaves out the random numbers of weights, which take half of the constructor's time."""

    draws = nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.uniform_

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        if func in self.draws:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def empty_clip(config: dict, precision: str) -> CLIP:
    """A CLIP of this configuration (arguments of `CLIP`) for weights that are loaded later: fp32,
    or half ones in open_clip's way. Random weights would take a second.
    """
    # The constructors of these libraries compute buffers.
    of_timm = config["vision_cfg"].get("timm_model_name")
    computes = of_timm or config["text_cfg"].get("hf_model_name")
    with ExitStack() as stack:
        if computes:
            stack.enter_context(torch.random.fork_rng(devices=[]))
        else:
            stack.enter_context(torch.device("meta"))
            stack.enter_context(Undrawn())
        model = CLIP(**config)
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        if half and of_timm:
            model.to(half)
            for module in model.modules():
                if isinstance(module, LayerNormFp32):
                    module.float()
        elif half:
            open_clip.convert_weights_to_lp(model, half)
    if computes:
        return model
    model.to_empty(device="cpu")
    if model.attn_mask is not None:
        model.attn_mask = torch.full(model.attn_mask.shape, -torch.inf).triu(1)
    return model


def three_numbers(key: str, value: Any) -> tuple[float, ...]:
    if (
        len(value) != 3
        or not all(math.isfinite(number) for number in value)
        or (key == "std" and min(value) <= 0)
    ):
        raise ValueError(f"preprocess_cfg has the {key} {value!r}")
    return tuple(value)


def of_clip(config: dict) -> dict:
    """The arguments of `CLIP` in a configuration of open_clip, such that no weights are downloaded.

    A text decoder, which captions images, is left out.
    """
    vision = config["vision_cfg"] | {"timm_model_pretrained": False}
    left_out = ("multimodal_cfg", "custom_text")
    return {key: value for key, value in config.items() if key not in left_out} | {
        "vision_cfg": vision
    }


def unpacked(state: Mapping[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """The tensors of an open_clip model by the names of `CLIP`, which has the text tower's parts as
    its own.
    """
    state = {key: value for key, value in state.items() if not key.startswith("text_decoder.")}
    if hugging_face(model) is None:
        return {key.removeprefix("text."): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.endswith(".position_ids")}


def openai_config(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `open_clip.CLIP`, with all sizes taken from the tensors.

    Raises:
        KeyError: a tensor is missing; the error is its name.
    """

    def layers(prefix: str) -> int:
        depth = prefix.count(".")
        return len({key.split(".")[depth] for key in state if key.startswith(prefix)})

    if "visual.proj" in state:
        width, _, _, patch = state["visual.conv1.weight"].shape
        places = state["visual.positional_embedding"]
        vision: dict[str, Any] = {
            "layers": layers("visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch,
        }
    else:
        places = state["visual.attnpool.positional_embedding"]
        patch = 32
        depths = tuple(layers(f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        vision = {
            "layers": depths,
            "width": state["visual.layer1.0.conv1.weight"].shape[0],
            "patch_size": None,
        }
    vision["image_size"] = round((len(places) - 1) ** 0.5) * patch
    width = len(state["ln_final.weight"])
    text = {
        "context_length": len(state["positional_embedding"]),
        "vocab_size": len(state["token_embedding.weight"]),
        "width": width,
        "heads": width // 64,
        "layers": layers("transformer.resblocks."),
    }
    embed_dim = state["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
