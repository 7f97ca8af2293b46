"""CLIP-LoRA in PEFT's format (`peft`), written for the CLIP of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from common.errors import UsageError
from common.files import write_json
from trainers.cliplora import CLIPLoRASettings, LoRALearner

from .classifier import PromptedClassifier
from .peft import CONFIG, PREFIX, REPOSITORIES


def write(classifier: PromptedClassifier, class_names: Sequence[str], file: Path) -> None:
    """Write the tensors to a file, and the configuration beside it; UsageError if the model is not
    CLIP-LoRA. Class names are not in them.
    """
    learner = classifier.model_for().prompt_learner
    if not isinstance(learner, LoRALearner):
        fault = f"{classifier.method} does not learn low-rank adapters alone, which PEFT has"
        raise UsageError(fault, "use --weights or --onnx, or export a model of CLIPLoRA")
    settings = CLIPLoRASettings(**classifier.description.settings)
    config, tensors = converted(learner, settings, classifier.description.backbone)
    tensors = {PREFIX + key: value.detach().float().contiguous() for key, value in tensors.items()}
    file.write_bytes(save(tensors, {"format": "pt"}))
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
    write_json(file.with_name(CONFIG), config)


def converted(
    learner: LoRALearner, settings: CLIPLoRASettings, backbone: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors for transformers' CLIPModel or SiglipModel."""
    tensors: dict[str, Any] = {}
    modules = []
    for tower, layer, lora in learner.adapters:
        for part, change in lora.named_children():
            place = f"{tower}_model.encoder.layers.{layer}.self_attn."
            place += "out_proj" if part == "proj" else part
            modules.append(place)
            tensors[f"{place}.lora_A.weight"] = change.w_lora_A
            tensors[f"{place}.lora_B.weight"] = change.w_lora_B
    everywhere = settings.ENCODER == "both" and settings.POSITION == "all"
    if everywhere and "o" not in settings.PARAMS:  # in SigLIP the head has an out_proj, too
        modules = list({place.rpartition(".")[2] for place in modules})
    return {
        "r": settings.R,
        "lora_alpha": settings.ALPHA,
        "use_rslora": True,  # ALPHA / sqrt(R) is CLIP-LoRA's scale
        "target_modules": sorted(modules),
        "base_model_name_or_path": REPOSITORIES.get(backbone),
    }, tensors
