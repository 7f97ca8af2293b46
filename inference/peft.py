"""CLIP-LoRA in PEFT's format, read: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts transformers' CLIP, whose q, k, v and output maps are modules. The format is that of
PEFT 0.21.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clip import CLIP, image_blocks, is_known, load_backbone, text_blocks
from common.errors import UsageError
from common.records import read
from common.text import read_bytes, read_json
from trainers.base.trainer import require_vit
from trainers.cliplora import POSITIONS, CLIPLoRASettings, LoRALearner, layers_of

from .artefact import LARGEST_PROMPTS, Description, tensors_in
from .description import zero_shot_description
from .options import LoadOptions

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# In transformers
REPOSITORIES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
# A map of attention
KEY = re.compile(
    r"base_model\.model\.(?P<tower>vision|text)_model\.encoder\.layers"
    r"\.(?P<layer>0|[1-9][0-9]{0,3})\.self_attn"
    r"\.(?P<part>q_proj|k_proj|v_proj|out_proj)\.lora_(?P<half>[AB])\.weight"
)
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Parts of `trainers.cliplora.LoRA`, and their letters in PARAMS
LETTERS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "o"}


@dataclass(frozen=True)
class AdapterConfig:
    """The keys of adapter_config.json that matter here."""

    peft_type: str
    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    bias: str = "none"
    base_model_name_or_path: str = ""
    use_dora: bool = False
    modules_to_save: list[str] = field(default_factory=list)
    alpha_pattern: dict = field(default_factory=dict)

    @classmethod
    def of_file(cls, file: Path) -> "AdapterConfig":
        """UsageError if it is damaged, or of another kind of adapter."""
        try:
            config = read(cls, read_json(file))
        except UsageError:
            raise
        except ValueError as error:
            fault = f"{file} is not a configuration of PEFT ({error})"
            raise UsageError(fault, "copy it again", file) from error
        config.check(file)
        return config

    def backbone(self, folder: Path) -> str:
        """The name of the backbone here; UsageError for another than OpenAI's or open_clip's."""
        known = {repository: name for name, repository in REPOSITORIES.items()}
        name = known.get(self.base_model_name_or_path, self.base_model_name_or_path)
        if not is_known(name):
            fault = f"{folder} adapts the model {name!r:.80}"
            raise UsageError(fault, "give it by --backbone (in Python: backbone)", folder)
        return name

    def check(self, file: Path) -> None:
        """Raise UsageError for another kind of adapter."""
        found = {"peft_type": self.peft_type, "bias": self.bias}
        for key, expected in {"peft_type": "LORA", "bias": "none"}.items():
            if found[key] != expected:
                fault = f"{file} has {key} {found[key]!r:.40}"
                raise UsageError(fault, f"only {expected!r} is a model here", file)
        if self.use_dora or self.modules_to_save:
            fault = f"{file} has {'use_dora' if self.use_dora else 'modules_to_save'}"
            raise UsageError(fault, "train LoRA alone", file)
        if self.alpha_pattern:
            fault = f"{file} has alpha_pattern: other scales for some modules"
            raise UsageError(fault, "train an adapter with one lora_alpha", file)
        if not 1 <= self.r <= 1024 or not 0 <= self.lora_dropout <= 0.95:
            fault = f"{file} has r {self.r} and lora_dropout {self.lora_dropout}"
            raise UsageError(fault, "r is 1 to 1024, lora_dropout 0 to 0.95", file)

    def scale(self, rank: int) -> float:
        """Of B A x."""
        return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)


class Place(NamedTuple):
    """A low-rank map of attention."""

    tower: str  # text or vision
    layer: int
    part: str  # one of LETTERS


# (A, B) of each map, (rank, width) and (width, rank); B with its scale
Maps = dict[Place, tuple[Tensor, Tensor]]


def read_adapter(folder: Path, options: LoadOptions) -> tuple[Description, dict[str, Any], str]:
    """A folder of PEFT's form as a model of CLIPLoRA: its description, its checkpoint, and the
    backbone to load.

    Raises:
        UsageError: a file is missing or damaged, holds more than low-rank maps of attention, or
            does not fit the backbone, which must be given if its name is not known.
    """
    config = AdapterConfig.of_file(folder / CONFIG)
    backbone = options.backbone or config.backbone(folder)
    clip = load_backbone(backbone)
    require_vit(clip, "CLIPLoRA", backbone)
    maps = maps_of(folder / TENSORS, config)
    settings = settings_for(maps, config, clip, backbone)
    learner = learner_with(maps, settings, clip)
    state = nn.ModuleDict(learner.extra_modules).state_dict()
    values = asdict(settings)
    metadata = {"method": "CLIPLoRA", "settings": values, "class_names": []}
    description = zero_shot_description(clip, backbone, list(options.class_names), "", {})
    description = replace(description, method="CLIPLoRA", settings=values)
    return description, {"state_dict": state, "epoch": 0, "metadata": metadata}, backbone


def maps_of(file: Path, config: AdapterConfig) -> Maps:
    """The low-rank maps in adapter_model.safetensors; without those that add nothing, if there are
    others.
    """
    tensors = tensors_in(read_bytes(file, LARGEST_PROMPTS), file)
    maps: Maps = {}
    for key in tensors:
        match = KEY.fullmatch(key)
        if not match:
            raise UsageError(
                f"{file} holds more than low-rank maps of attention: {key[:120]}",
                "train LoRA on q, k, v or the output projection of transformers' CLIP alone",
                file,
            )
        half, other = ("lora_A", "lora_B") if match["half"] == "A" else ("lora_B", "lora_A")
        if key.replace(half, other) not in tensors:
            raise UsageError(f"{file} has {key[:120]} alone", "copy it again", file)
        if match["half"] == "A":
            part = match["part"].removeprefix("out_")
            place = Place(match["tower"], int(match["layer"]), part)
            maps[place] = factors_of(key, tensors, config, file)
    if not maps:
        raise UsageError(f"{file} holds no low-rank map", "copy it again", file)
    return {place: pair for place, pair in maps.items() if pair[1].any()} or maps


def factors_of(
    key: str, tensors: dict[str, Tensor], config: AdapterConfig, file: Path
) -> tuple[Tensor, Tensor]:
    """A, and B with its scale; UsageError if they are not a low-rank map of a tower's width, or
    not finite.
    """
    down = tensors[key]
    up = tensors[key.replace("lora_A", "lora_B")]
    fits = down.dtype in TYPES and up.dtype in TYPES and down.dim() == up.dim() == 2
    fits = fits and 0 < len(down) == up.shape[1] and 0 < len(up) == down.shape[1]
    if not fits or not (down.isfinite().all() and up.isfinite().all()):
        fault = f"{key[:120]} in {file} and its lora_B are not a low-rank map"
        raise UsageError(fault, "copy it again, or train it again", file)
    return down.float(), config.scale(len(down)) * up.float()


def settings_for(maps: Maps, config: AdapterConfig, clip: CLIP, backbone: str) -> CLIPLoRASettings:
    """The settings of CLIPLoRA with the fewest adapted blocks that have all maps."""
    rank = max(len(down) for down, _ in maps.values())
    alpha = float(f"{config.scale(rank) * rank**0.5:.9g}") or 1.0
    used = {place.part for place in maps}
    values: dict[str, Any] = {"R": rank, "DROPOUT_RATE": config.lora_dropout}
    values["ENCODER"], values["POSITION"] = covering(
        {(place.tower, place.layer) for place in maps}, clip, backbone
    )
    values["PARAMS"] = [letter for part, letter in LETTERS.items() if part in used]
    values["ALPHA"] = int(alpha) if alpha == int(alpha) else alpha
    return CLIPLoRASettings(**values)


def learner_with(maps: Maps, settings: CLIPLoRASettings, clip: CLIP) -> LoRALearner:
    """The adapters with these maps; the other maps of their blocks change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # A of maps that change nothing
        learner = LoRALearner(clip, ["class"], settings)
    for tower, layer, lora in learner.adapters:
        for part, change in lora.named_children():
            if found := maps.get(Place(tower, layer, part)):
                fill(change, *found, lora.scale, f"layer {layer} of the {tower} tower")
    return learner


@torch.no_grad()
def fill(change: Any, down: Tensor, up: Tensor, scale: float, where: str) -> None:
    """Put A and B, B with its scale, into a map of the same or of a larger rank."""
    width = change.w_lora_A.shape[1]
    if down.shape[1] != width:
        fault = f"{where} has width {width}, and the adapter has {down.shape[1]}"
        raise UsageError(fault, "give the backbone that it adapts by --backbone")
    change.w_lora_A.zero_()
    change.w_lora_A[: len(down)] = down
    change.w_lora_B[:, : len(down)] = up / scale


def covering(adapted: set[tuple[str, int]], clip: CLIP, backbone: str) -> tuple[str, str]:
    """ENCODER and POSITION of CLIPLoRA with the fewest blocks that have all these.

    Args:
        adapted: tower and layer.
    """
    depths = {"text": len(text_blocks(clip)), "vision": len(image_blocks(clip))}
    found = {}
    for encoder, position in product(["text", "vision", "both"], POSITIONS):
        blocks = set()
        for tower in depths if encoder == "both" else [encoder]:
            try:
                layers = layers_of(position, tower, depths[tower])
            except UsageError:  # it has no meaning in a tower so deep
                break
            blocks |= {(tower, layer) for layer in layers}
        else:
            if adapted <= blocks:
                found[encoder, position] = len(blocks)
    if not found:
        tower, layer = max(adapted, key=lambda block: block[1])
        fault = (
            f"the adapter changes layer {layer} of the {tower} tower; {backbone} has no such one"
        )
        raise UsageError(fault, "give the backbone that it adapts by --backbone")
    return min(found, key=lambda pair: found[pair])
