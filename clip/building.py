"""Builds a CLIP from the tensors of a weight file, by open_clip, with the sizes that the tensors have."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn

from common.errors import one_line
from common.files import identity

from .errors import ClipError
from .weights import read_state_dict, regular_file

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in OpenAI's archives and traces


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


KEPT: OrderedDict[tuple, CLIP] = OrderedDict()  # the backbones that this process built last; another load is a copy
kept_backbones = 0


def keep_backbones(count: int) -> None:
    """Keep the `count` backbones that this process builds last, so that its next run need not read their files."""
    global kept_backbones
    kept_backbones = count
    while len(KEPT) > count:
        KEPT.popitem(last=False)


def build(path: Path, precision: str, source: str, config: dict | None = None, resize: bool = False) -> CLIP:
    """A CLIP with the weights of a file. Without a configuration it is built like OpenAI's: QuickGELU, heads of 64.

    The generators of random numbers end where they were, so that the prompts of a seed do not depend on the backbone.

    Args:
        path: a file for `read_state_dict`.
        precision: `fp32`; `fp16` or `bf16` for weights of that type, with LayerNorm in fp32.
        source: name of the weights, for errors.
        config: `model_cfg` (arguments of `open_clip.CLIP`) and `preprocess_cfg` (`mean` and `std` of the images).
        resize: whether to fit position embeddings of other lengths to the configuration, as open_clip does.

    Raises:
        ClipError: the file cannot be read, or a tensor is missing, is one too many, has another shape or is not finite.
    """
    file = identity(regular_file(path)), precision, repr(config), resize, torch.get_default_dtype()
    if file in KEPT:
        KEPT.move_to_end(file)
        return twin(KEPT[file])
    state, remedy = read_state_dict(path), "give another file"
    try:
        arguments = checked_sizes(config["model_cfg"] if config else openai_config(state), state)
        with torch.device("meta"):  # no memory before its sizes are those of the weights
            model = new_clip(arguments, precision)
        known = model.state_dict()
        state = {key: value for key, value in state.items() if key in known or key.split(".")[-1] not in NOT_WEIGHTS}
        if resize:
            lengths = {key: value for key, value in state.items() if key.endswith("positional_embedding")}
            # Those of integers stay, so that `fill` refuses them.
            places = {key: value.float() for key, value in lengths.items() if value.is_floating_point()}
            state |= places | {"logit_scale": state["logit_scale"].reshape(model.logit_scale.shape)}
            resize_pos_embed(state, model)
            resize_text_pos_embed(state, model)
        model.load_state_dict({key: value.to("meta") for key, value in state.items()})  # the same names and sizes
        if isinstance(model.visual, TimmModel):  # its constructor computes buffers
            with torch.random.fork_rng(devices=[]):
                model = new_clip(arguments, precision)
        else:
            model.to_empty(device="cpu")
            if model.attn_mask is not None:
                model.attn_mask = torch.full(model.attn_mask.shape, -torch.inf).triu(1)
        for key, weight in model.state_dict().items():
            fill(key, weight, state.pop(key))  # one by one, so that little memory is needed for both
        for key, value in (config or {}).get("preprocess_cfg", {}).items():
            if key in ("mean", "std"):
                setattr(model.visual, f"image_{key}", three_numbers(key, value))
    except KeyError as error:
        raise ClipError(f"{source} is not a CLIP: it has no tensor {error}", remedy) from error
    except Exception as error:  # open_clip checks nothing: wrong sizes raise errors of many kinds deep in it
        reason = f"{type(error).__name__}: {one_line(error)}"  # it may also be a bug, or another open_clip
        raise ClipError(f"{source} is not a CLIP that open_clip can build ({reason})", remedy) from error
    while KEPT and len(KEPT) >= kept_backbones:
        KEPT.popitem(last=False)  # before the copy needs memory
    if kept_backbones:
        KEPT[file] = twin(model)
    return model


def twin(part: Any, tensor: Callable[[Tensor], Tensor] = deepcopy) -> Any:
    """A copy of a module without tied parts, thrice as fast as `deepcopy`; `tensor` makes those of the copy."""
    if isinstance(part, Tensor):
        return tensor(part)
    if isinstance(part, nn.Module):
        module = copy(part)
        vars(module).update({name: twin(value, tensor) for name, value in vars(part).items()})
        return module
    if isinstance(part, dict):
        entries = part.copy()  # keeps the type of hooks, which need a weak reference
        entries.update((key, twin(value, tensor)) for key, value in part.items())
        return entries
    return part.copy() if isinstance(part, set | list) else part


def fill(name: str, weight: Tensor, value: Tensor) -> None:
    """Copy a tensor of a file to the weight of that name.

    Raises:
        ValueError: it is not finite, or is of integers and should not be, or the other way round.
    """
    if value.is_floating_point() != weight.is_floating_point():
        raise ValueError(f"{name} has the type {value.dtype}, not {weight.dtype}")
    weight.copy_(value)
    # The smallest and the largest number show it without memory for an answer to each.
    if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
        raise ValueError(f"{name} is not finite")


def new_clip(config: dict, precision: str) -> CLIP:
    """A CLIP of this configuration (arguments of `CLIP`) with random weights: fp32, or half ones in open_clip's way."""
    model = CLIP(**config)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half and isinstance(model.visual, TimmModel):
        model.to(half)
        for module in model.modules():
            if isinstance(module, LayerNormFp32):
                module.float()
    elif half:
        open_clip.convert_weights_to_lp(model, half)
    return model


def three_numbers(key: str, value: Any) -> tuple[float, ...]:
    if len(value) != 3 or not all(math.isfinite(number) for number in value) or (key == "std" and min(value) <= 0):
        raise ValueError(f"preprocess_cfg has the {key} {value!r}")
    return tuple(value)


def checked_sizes(config: dict, state: Mapping[str, Tensor]) -> dict:
    """The arguments of `CLIP`, such that building it on the meta device takes little time and nothing is downloaded.

    Raises:
        ValueError: the configuration names a model hub, or describes far more than the tensors are.
    """
    vision, text = config["vision_cfg"] | {"timm_model_pretrained": False}, config["text_cfg"]
    if "hf_model_name" in text or ":" in (vision.get("timm_model_name") or ""):
        raise ValueError("its configuration names a model of a hub")
    depth = sum(vision["layers"]) if isinstance(vision.get("layers"), list | tuple) else vision.get("layers", 0)
    depth += text.get("layers", 0)
    if 12 * depth > len(state):  # as many are in the smallest kind of layer
        raise ValueError(f"its {len(state)} tensors are too few for {depth} layers")
    if text.get("context_length", 0) ** 2 > sum(value.numel() for value in state.values()):  # the mask of attention
        raise ValueError(f"its configuration has a context of {text['context_length']} tokens")
    return config | {"vision_cfg": vision}


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
        places, depth = state["visual.positional_embedding"], layers("visual.transformer.resblocks.")
        vision: dict[str, Any] = {"layers": depth, "width": width, "patch_size": patch}
    else:
        places, patch = state["visual.attnpool.positional_embedding"], 32
        depths = tuple(layers(f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        vision = {"layers": depths, "width": state["visual.layer1.0.conv1.weight"].shape[0], "patch_size": None}
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
