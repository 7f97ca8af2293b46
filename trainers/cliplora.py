from dataclasses import dataclass, field
from typing import Any, Literal

from dassl.engine import TRAINER_REGISTRY

from clip import adapt, image_blocks, text_blocks, text_width, vision_width
from common.errors import UsageError

from .base import require_vit
from .base.lora import LoRA
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings
from .base.steps import SteppedMethod

# Layers from 0, in towers of 12 layers.
POSITIONS = {
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-up": (6, 12),
    "half-bottom": (0, 6),
    "top3": (9, 12),
}
POSITIONS |= {"all": (0, 12)}
OF_24 = "half-up", "half-bottom", "all"  # these have a meaning in a tower of 24 layers, too


@dataclass(frozen=True)
class CLIPLoRASettings(MethodSettings):
    """R and ALPHA are those of the low-rank maps B A, which are scaled by ALPHA / sqrt(R); PARAMS
    are the maps of attention that have them; N_ITERS times DATASET.NUM_SHOTS is the number of
    steps.
    """

    R: int = 2
    ALPHA: int | float = 1
    DROPOUT_RATE: int | float = 0.25
    PARAMS: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    ENCODER: Literal["both", "text", "vision"] = "both"
    POSITION: Literal["all", "bottom", "mid", "up", "half-up", "half-bottom", "top3"] = "all"
    N_ITERS: int = 500
    ranges = {
        "R": (1, 1024),
        "ALPHA": (0, 10_000),
        "DROPOUT_RATE": (0, 0.95),
        "N_ITERS": (1, 100_000),
    }

    def check(self):
        if (
            not self.PARAMS
            or not set(self.PARAMS) <= set("qkvo")
            or len(set(self.PARAMS)) < len(self.PARAMS)
        ):
            raise UsageError(f"PARAMS is {list(self.PARAMS)}", "give some of q, k, v and o")

    def lora(self, width: int) -> LoRA:
        return LoRA(width, self.R, self.ALPHA / self.R**0.5, self.PARAMS, self.DROPOUT_RATE)


def layers_of(position: str, tower: str, depth: int) -> range:
    """The layers of a tower at a position; UsageError if that has no meaning in a tower so deep."""
    if position == "all":
        return range(depth)
    if depth > 12 and (position not in OF_24 or depth != 24):
        fault = f"TRAINER.CLIPLORA.POSITION is {position}, and the {tower} tower has {depth} layers"
        remedy = f"give {', '.join(OF_24)} for 24 layers, or choose another backbone"
        raise UsageError(fault, remedy)
    first, end = POSITIONS[position]
    return range(2 * first, 2 * end) if depth == 24 else range(first, min(end, depth))


class LoRALearner(TemplatePrompts):
    """The adapters of both towers; `layer_<i>` counts the adapted blocks, those of the text tower
    first.
    """

    logit_scale = 100.0

    def __init__(self, clip: Any, classnames: list[str], settings: CLIPLoRASettings):
        super().__init__("a photo of a {}.", classnames, clip)
        self.adapters: list[tuple[str, int, LoRA]] = []
        towers = ("text", text_width, text_blocks), ("vision", vision_width, image_blocks)
        for tower, width_of, blocks_of in towers:
            if settings.ENCODER in ("both", tower):
                layers = layers_of(settings.POSITION, tower, len(blocks_of(clip)))
                self.adapters += [(tower, layer, settings.lora(width_of(clip))) for layer in layers]
        if not self.adapters:
            fault = f"TRAINER.CLIPLORA.POSITION is {settings.POSITION}"
            raise UsageError(fault, "its layers do not exist: give all")
        self.extra_modules = {
            f"layer_{number}": lora for number, (*_, lora) in enumerate(self.adapters)
        }

    def install(self, clip: Any) -> None:
        for tower, layer, lora in self.adapters:
            adapt(clip if tower == "text" else clip.visual, layer, lora)


def of(value: Any) -> dict[Any, Any]:
    """A dictionary of a file, or an empty one if it is something else."""
    return value if isinstance(value, dict) else {}


@TRAINER_REGISTRY.register()
class CLIPLoRA(SteppedMethod):
    """Low-rank adaptation of CLIP's attention (Zanella and Ben Ayed, CVPRW 2024)."""

    Settings = CLIPLoRASettings
    published = ("layer_*",)
    published_file = "lora_weights.pt"

    def build_prompts(self, clip, classnames):
        require_vit(clip, "CLIPLoRA", self.cfg.MODEL.BACKBONE.NAME)
        return LoRALearner(clip, classnames, self.settings)

    @classmethod
    def of_published_file(cls, content: Any, path: str, settings: Any) -> dict[str, Any]:
        """`weights` has tensors by layer, map and name; `metadata` the settings that say what the
        layers are.
        """
        written = of(content).get("metadata")
        if not isinstance(written, dict):
            raise UsageError(
                f"{path} is not a LoRA file of CLIP-LoRA's code", "check --model-dir", path
            )
        check_same_layers(written, path, settings)
        state = {}
        for layer, parts in of(of(content).get("weights")).items():
            for part, tensors in of(parts).items():
                for name, tensor in of(tensors).items():
                    state[f"{layer}.{part}.{name}"] = tensor
        return {"state_dict": state, "epoch": 0}  # it does not say which


def check_same_layers(written: dict[str, Any], path: str, settings: Any) -> None:
    """Raise UsageError if the metadata of a file is of other settings."""
    for key in ("r", "alpha", "encoder", "position", "params"):
        name = f"TRAINER.CLIPLORA.{key.upper()}"
        here = getattr(settings, key.upper())
        expected = sorted(here) if isinstance(here, list) else here
        there = written.get(key)
        if isinstance(there, list | tuple):
            there = sorted(map(str, there))
        if there != expected:
            fault = f"{path} has {key} {there!r:.40}, and {name} is {here}"
            raise UsageError(fault, f"give that {name}", path)
