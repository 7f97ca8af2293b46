from dataclasses import dataclass

import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from clip import CLIP

from .base.copies import CopyLearner, require_clip
from .base.prompts import ContextSettings
from .base.teacher import TaughtMethod, cosine_distance


@dataclass(frozen=True)
class CLIPFitSettings(ContextSettings):
    """LAMBDA is the weight of the distance from the frozen CLIP. The other keys but PREC have no
    effect; the published files have them."""

    LAMBDA: int | float = 8.0
    W1: int | float = 1.0
    W2: int | float = 1.0
    ranges = dict.fromkeys(("LAMBDA", "W1", "W2"), (0, 1_000_000))


def learned(clip: CLIP) -> dict[str, str]:
    """The tensors of the CLIP that are learned, each with its name in the official checkpoints."""
    names = [name for name, _ in clip.named_parameters()]
    image = [name for name in names if name.startswith("visual.") and ".ln_" in name]
    text = [
        name
        for name in names
        if name.startswith("transformer.") and name.endswith(".mlp.c_proj.bias")
    ]
    copies = {name: f"image_encoder.{name.removeprefix('visual.')}" for name in image}
    return copies | {name: f"text_encoder.{name}" for name in text}


@TRAINER_REGISTRY.register()
class CLIPFit(TaughtMethod):
    """Layer norms of the image tower and biases of the text tower's MLPs (Li et al., EMNLP
    2024).
    """

    Settings = CLIPFitSettings
    reads_template = True
    reads_sentences = False
    checkpoint_has_learner_only = True
    published_sections = ("TRAINER.COOP",)
    teacher_templates = {"DescribableTextures": "a photo of a {}, a type of texture."}

    def build_prompts(self, clip, classnames):
        require_clip(clip, "CLIPFit", self.cfg.MODEL.BACKBONE.NAME)
        return CopyLearner(self.template(self.teacher_templates), classnames, clip, learned(clip))

    def log_lines(self):
        return (
            ["PREC amp: the loss is cross-entropy alone, as in the official code"]
            if self.amp
            else []
        )

    def loss(self, output, labels):
        """Cross-entropy, and the distance of the text features from the frozen CLIP's."""
        distance = cosine_distance(output.text, self.teacher.text_features)
        parts = {"loss_ce": F.cross_entropy(output.logits, labels), "loss_similarity": distance}
        return parts["loss_ce"] + (0 if self.amp else self.settings.LAMBDA) * distance, parts
