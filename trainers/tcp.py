from collections import OrderedDict
from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from clip import Edit, TextPrompts, text_blocks, tokenizer_of, word_table
from common.errors import UsageError

from .base.prompts import (
    WORDS,
    ContextSettings,
    TemplatePrompts,
    gaussian,
    text_width,
    word_embeddings,
)
from .base.teacher import TaughtMethod

# Text layer (from 0) of the class-aware prompts, and how many they are
LAYER = 8
N_CLASS = 4
WEIGHT = 8.0  # of the distance from the frozen CLIP

# The learned sentences; the first four words are replaced.
TEMPLATES = {
    "OxfordPets": "X X X X {}, a type of pet.",
    "OxfordFlowers": "X X X X {}, a type of flower.",
    "FGVCAircraft": "X X X X {}, a type of aircraft.",
    "DescribableTextures": "X X X X {} texture.",
    "StanfordCars": "X X X X {}, a type of car",
    "Food101": "X X X X {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    **dict.fromkeys(
        ["ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"], "a photo of a {}."
    ),
}


@dataclass(frozen=True)
class TCPSettings(ContextSettings):
    """CTX_INIT True starts from `a photo of a`. W is not used; the published scripts set it."""

    N_CTX: int = 4
    CTX_INIT: bool = False
    W: int | float = 1.0
    ranges = {"N_CTX": (1, N_CLASS)}

    def check(self):
        if self.CSC or self.CLASS_TOKEN_POSITION != "end":
            key = "CSC" if self.CSC else "CLASS_TOKEN_POSITION"
            remedy = "TCP has one context for all classes, before their names"
            raise UsageError(f"{key} is {getattr(self, key)!r}", remedy)


class TCPPrompts(TemplatePrompts):
    """Context vectors at layer 0, and vectors made of each class's text feature at layer 8 (TCP,
    Sec. 3).

    Args:
        template: the sentence, with at least four words before the class name.
        ctx: (n, text width), n <= 4, which replace the first n of these words.
    """

    class_features: Tensor  # (C, joint), normalised: the frozen CLIP's
    words: Tensor

    def __init__(self, clip, classnames: list[str], template: str, ctx: nn.Parameter):
        super().__init__(template, classnames, clip)
        self.ctx = ctx
        joint = clip.visual.output_dim
        width = text_width(clip)
        layers = {
            "linear1": nn.Linear(joint, joint // 4),
            "relu": QuickGELU(),  # the published name
            "linear2": nn.Linear(joint // 4, N_CLASS * width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers))
        stay = self.ids[0, tokenizer_of(clip).start :][len(ctx) : N_CLASS]  # of the four words
        self.register_buffer("words", word_table(clip)(stay).detach().float(), persistent=False)

    def text(self, image_features: Tensor) -> TextPrompts:
        prompts = self.meta_net(self.class_features).unflatten(-1, (N_CLASS, -1))  # (C, 4, width)
        deep = [*[Edit()] * LAYER, Edit(N_CLASS, prompts)]
        return TextPrompts(self.ids, torch.cat([self.ctx, self.words]), deep=deep)


@TRAINER_REGISTRY.register()
class TCP(TaughtMethod):
    """Textual-based Class-aware Prompt tuning (Yao et al., CVPR 2024)."""

    Settings = TCPSettings
    reads_template = True
    checkpoint_has_learner_only = True
    published_sections = ("TRAINER.COOP",)
    published = ("ctx", "meta_net.*")
    teacher_templates = {
        "FGVCAircraft": "a photo of an aircraft {}.",
        "DescribableTextures": "a photo of a {}, a type of texture.",
        "Food101": "a photo of a {}, a type of food.",
    }

    def build_prompts(self, clip, classnames):
        layers = len(text_blocks(clip))
        if layers <= LAYER:
            name = self.cfg.MODEL.BACKBONE.NAME
            fault = f"TCP adds prompts before text layer {LAYER}, and {name} has {layers} layers"
            raise UsageError(fault, f"choose a backbone with more than {LAYER}")
        start = self.settings.CTX_INIT
        ctx = (
            word_embeddings(clip, WORDS, N_CLASS)
            if start
            else gaussian(self.settings.N_CTX, text_width(clip))
        )
        return TCPPrompts(
            clip, classnames, TEMPLATES.get(self.cfg.DATASET.NAME, "X X X X {}."), ctx
        )

    def after_build(self):
        self.model.prompt_learner.register_buffer(
            "class_features", self.teacher.text_features, persistent=False
        )

    def loss(self, output, labels):
        """Cross-entropy, and text features held near the frozen CLIP's."""
        return self.distillation_loss(output, labels, WEIGHT)
