"""CLIP-LoRA in PEFT's format (`peft`), written for the CLIP of transformers or of open_clip."""

import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import save
from timm.models.vision_transformer import Attention
from torch import Tensor

from clip import CLIP, image_blocks, is_known, is_vit
from common.errors import UsageError
from common.files import write_json
from trainers.cliplora import CLIPLoRASettings, LoRALearner

from .classifier import PromptedClassifier
from .peft import CONFIG, PARTS, PREFIX, REPOSITORIES, TENSORS

LIBRARIES = "transformers", "open_clip"


def write(classifier: PromptedClassifier, folder: Path, library: str) -> None:
    """Write both files to a folder.

    Args:
        library: whose CLIP they adapt, one of LIBRARIES.

    Raises:
        UsageError: the model is not CLIP-LoRA, or PEFT would compute something else.
    """
    model = classifier.model_for()
    learner = model.prompt_learner
    if not isinstance(learner, LoRALearner):
        fault = f"{classifier.method} does not learn low-rank adapters alone, which PEFT has"
        raise UsageError(fault, "use --weights or --onnx, or export a model of CLIPLoRA")
    settings = CLIPLoRASettings(**classifier.description.settings)
    convert = for_transformers if library == "transformers" else for_open_clip
    config, tensors = convert(learner, settings, model.frozen, classifier.description.backbone)
    tensors = {PREFIX + key: value.detach().float().contiguous() for key, value in tensors.items()}
    (folder / TENSORS).write_bytes(save(tensors, {"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "lora_dropout": settings.DROPOUT_RATE,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        **config,
    }
    write_json(folder / CONFIG, config)


def for_transformers(
    learner: LoRALearner, settings: CLIPLoRASettings, clip: CLIP, backbone: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors for transformers' CLIPModel or SiglipModel."""
    tensors: dict[str, Tensor] = {}
    modules = []
    for tower, layer, lora in learner.adapters:
        for part, change in lora.named_children():
            place = f"{tower}_model.encoder.layers.{layer}.self_attn."
            place += "out_proj" if part == "proj" else part
            modules.append(place)
            tensors |= factors(place, change.w_lora_A, change.w_lora_B)
    # In SigLIP the head has an out_proj, too
    if is_everywhere(settings) and "o" not in settings.PARAMS:
        modules = list({place.rpartition(".")[2] for place in modules})
    return {
        "r": settings.R,
        "lora_alpha": settings.ALPHA,
        "use_rslora": True,  # ALPHA / sqrt(R) is CLIP-LoRA's scale
        "target_modules": sorted(modules),
        "base_model_name_or_path": REPOSITORIES.get(backbone),
    }, tensors


def factors(module: str, down: Any, up: Any) -> dict[str, Tensor]:
    """A and B of a module by their names."""
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


def for_open_clip(
    learner: LoRALearner, settings: CLIPLoRASettings, clip: CLIP, backbone: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors for open_clip's model: the maps of q, k and v one below
    the other are one map of three times the rank.
    """
    if "o" in settings.PARAMS:
        fault = "PEFT 0.21 adds the change of an output projection of open_clip two times"
        raise UsageError(fault, "use --peft transformers")
    tensors: dict[str, Tensor] = {}
    modules = []
    for tower, layer, lora in learner.adapters:
        module = open_clip_module(clip, backbone, tower, layer)
        modules.append(module)
        tensors |= packed_factors(module, lora)
    everywhere = is_everywhere(settings) and modules[0].startswith("transformer.") and is_vit(clip)
    return {
        "r": 3 * settings.R,
        "lora_alpha": 3 * settings.R,  # the scale is in B
        "use_rslora": False,
        # One text is a regular expression: names in a list would match the other tower, too
        "target_modules": ["attn"] if everywhere else "|".join(map(re.escape, modules)),
        "base_model_name_or_path": backbone if is_known(backbone) else None,
    }, tensors


def packed_factors(module: str, lora: Any) -> dict[str, Tensor]:
    """A and B of a packed map."""
    down, up = packed(lora)
    tensors = factors(module, down, up)
    if module.endswith(".attn"):  # PEFT wants a change of the output projection, too
        no_change = torch.zeros_like(down), torch.zeros(lora.width, len(down))
        tensors |= factors(f"{module}.base_layer.out_proj", *no_change)
    return tensors


def open_clip_module(clip: CLIP, backbone: str, tower: str, layer: int) -> str:
    """The name of the module with the packed maps of q, k and v in open_clip's own model."""
    of_timm = isinstance(clip.visual, TimmModel)
    if tower == "vision" and of_timm:
        check_reads_packed(image_blocks(clip)[layer].attn, backbone)
        return f"visual.trunk.blocks.{layer}.attn.qkv"
    if tower == "vision":
        return f"visual.transformer.resblocks.{layer}.attn"
    config = open_clip.get_model_config(backbone.partition(":")[0]) or {}
    is_custom = config.get("custom_text", of_timm)
    return f"{'text.' if is_custom else ''}transformer.resblocks.{layer}.attn"


def check_reads_packed(attention: Any, backbone: str) -> None:
    """Raise UsageError for an attention that reads the weights of its packed map past PEFT, as
    EVA's does.
    """
    if type(attention) is not Attention:
        fault = f"PEFT does not reach q, k and v in the image tower of {backbone}"
        raise UsageError(fault, "use the exported folder itself, or export a ViT or SigLIP")


def is_everywhere(settings: CLIPLoRASettings) -> bool:
    return settings.ENCODER == "both" and settings.POSITION == "all"


def packed(lora: Any) -> tuple[Tensor, Tensor]:
    """A (3 rank, width) and B (3 width, 3 rank) of q, k and v, B with its scale."""
    rank = len(next(lora.children()).w_lora_A)
    down = torch.zeros(3 * rank, lora.width)
    up = torch.zeros(3 * lora.width, 3 * rank)
    for number, part in enumerate(PARTS[:3]):
        change = lora._modules.get(part)
        if change is not None:
            ranks = slice(number * rank, (number + 1) * rank)
            rows = slice(number * lora.width, (number + 1) * lora.width)
            down[ranks] = change.w_lora_A.detach()
            up[rows, ranks] = lora.scale * change.w_lora_B.detach()
    return down, up
