from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from dassl.engine import TRAINER_REGISTRY
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from clip import CLIP, text_width, vision_width
from common.errors import UsageError

from .base.copies import Spectrum, decomposed, recomposed, register, require_clip, substitute
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings
from .base.steps import LAST_RATE, SteppedMethod

# Blocks from 0, the same in towers of any depth.
LAYERS: dict[str, Sequence[int]] = {
    "all": range(12),
    "top": range(8, 12),
    "middle": range(4, 8),
    "bottom": range(4),
    "top_middle": range(4, 12),
    "bottom_middle": range(8),
    "top_bottom": [*range(4), *range(8, 12)],
}
BLOCKS = {"text": "transformer.resblocks", "vision": "visual.transformer.resblocks"}
# The maps of a tensor of a block, one above the other: each with its letter in PARAMS and its name
# in official files.
MAPS = {
    "attn.in_proj_weight": [("q", "attn.q_proj"), ("k", "attn.k_proj"), ("v", "attn.v_proj")],
    "attn.out_proj.weight": [("o", "attn.proj")],
    "mlp.c_fc.weight": [("mlp", "mlp.c_fc")],
    "mlp.c_proj.weight": [("mlp", "mlp.c_proj")],
}


@dataclass(frozen=True)
class CLIPSVDSettings(MethodSettings):
    """RANK is the share of singular values of each map that are kept. LAYERS, ENCODER and PARAMS
    say where they learn. N_ITERS times DATASET.NUM_SHOTS is the number of steps; 0: OPTIM.MAX_EPOCH
    epochs, after which many batches the cosine of the learning rate turns back, as in the official
    program of base-to-new.
    """

    RANK: int | float = 1.0
    LAYERS: Literal[
        "all", "top", "middle", "bottom", "top_middle", "bottom_middle", "top_bottom"
    ] = "all"
    ENCODER: Literal["both", "text", "vision"] = "both"
    PARAMS: list[str] = field(default_factory=lambda: ["q", "k", "v", "o", "mlp"])
    N_ITERS: int = 200
    ranges = {"RANK": (0, 1), "N_ITERS": (0, 100_000)}

    def check(self):
        known = {"q", "k", "v", "o", "mlp"}
        if (
            not self.PARAMS
            or not set(self.PARAMS) <= known
            or len(set(self.PARAMS)) < len(self.PARAMS)
        ):
            raise UsageError(f"PARAMS is {list(self.PARAMS)}", "give some of q, k, v, o and mlp")


class SpectralLearner(TemplatePrompts):
    """The singular values of linear maps in the blocks, by their names in official files:
    `....q_proj.vector_S`.
    """

    logit_scale = 100.0

    def __init__(self, clip: CLIP, classnames: list[str], template: str, settings: CLIPSVDSettings):
        super().__init__(template, classnames, clip)
        self.settings = settings
        self.spectra: dict[str, list[Spectrum | None]] = {}  # by the name of the frozen tensor
        for tower, blocks in BLOCKS.items():
            for layer, block in enumerate(clip.get_submodule(blocks)):  # type: ignore[arg-type]
                here = settings.ENCODER in ("both", tower) and layer in LAYERS[settings.LAYERS]
                params = settings.PARAMS if here else []
                for name in MAPS:
                    spectra = self.spectra_of(f"{blocks}.{layer}", block, name, params)
                    if any(spectra):
                        self.spectra[f"{blocks}.{layer}.{name}"] = spectra

    def spectra_of(
        self, place: str, block: nn.Module, name: str, params: Sequence[str]
    ) -> list[Spectrum | None]:
        """The spectra of the maps of one tensor, registered below `place`; None for a map that
        stays as it is. Those of `params` learn.
        """
        spectra: list[Spectrum | None] = []
        for number, (param, saved) in enumerate(MAPS[name]):
            if param not in params and self.settings.RANK == 1:
                spectra.append(None)
                continue
            known = decomposed(block.get_parameter(name), len(MAPS[name]))[number]
            spectrum = Spectrum(known, self.settings.RANK, param in params)
            register(self, f"{place}.{saved}", spectrum)
            spectra.append(spectrum)
        return spectra

    def install(self, clip: CLIP) -> None:
        for name, spectra in self.spectra.items():
            substitute(clip, name, partial(recomposed, spectra))


@TRAINER_REGISTRY.register()
class CLIPSVD(SteppedMethod):
    """The singular values of the linear maps of both towers (Koleilat et al., 2025)."""

    Settings = CLIPSVDSettings
    reads_template = True
    checkpoint_has_learner_only = True
    published_file = "base_model.pt"

    def build_prompts(self, clip, classnames):
        require_clip(clip, "CLIPSVD", self.cfg.MODEL.BACKBONE.NAME)
        if (rank := self.settings.RANK) * min(text_width(clip), vision_width(clip)) < 4:
            raise UsageError(
                f"TRAINER.CLIPSVD.RANK is {rank}", "raise it: no singular value is left"
            )
        return SpectralLearner(clip, classnames, self.template(), self.settings)

    @classmethod
    def of_published_file(cls, content, path, settings):
        weights = content.get("weights") if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise UsageError(f"{path} is not a file of CLIP-SVD's code", "check --model-dir", path)
        return {
            "state_dict": {
                key: value for key, value in weights.items() if key.endswith(".vector_S")
            },
            "epoch": 0,
        }

    def build_schedule(self, optimizer):
        length = self.steps if self.settings.N_ITERS else self.training.max_epoch
        return CosineAnnealingLR(optimizer, length, LAST_RATE)
