from dataclasses import dataclass
from functools import cached_property

import torch
from dassl.engine import TRAINER_REGISTRY

from .base.prompted import normalize
from .base.teacher import mean_text_features
from .base.test_time import TemplatesSettings, ViewsMethod, entropy_of_mean, most_confident

WEIGHT_DECAY = 0.01  # of AdamW


@dataclass(frozen=True)
class TPSSettings(TemplatesSettings):
    """SELECTION is the share of views in the loss, the most confident ones of each step. STEPS and
    LR are those of AdamW. PER_LABEL shifts each class by itself; else one shift is for all classes.
    """

    CTX_INIT: str = "a photo of a"
    SELECTION: float = 0.1
    STEPS: int = 1
    LR: float = 0.005
    PER_LABEL: bool = True
    ranges = {"SELECTION": (0, 1), "STEPS": (1, 1000), "LR": (0, 100)}


@TRAINER_REGISTRY.register()
class TPS(ViewsMethod):
    """Text features that are shifted for each image, so that its views agree (Sui et al., 2024)."""

    Settings = TPSSettings

    @cached_property
    def texts(self):
        """The mean of a class's sentences (DATASET.SENTENCES) counts as much as that of its
        templates.
        """
        templates = [
            [text.replace("{}", name) for text in self.templates] for name in self.class_names
        ]
        means = mean_text_features(self.model.frozen, templates, unit=True)
        if self.sentences:
            own = self.class_sentences(*self.templates)
            means = means + mean_text_features(self.model.frozen, own, unit=True)
        return normalize(means)

    def logits_of_features(self, features, state):
        return self.model.logits(features[:1], self.shifted(features)[0])[0]

    def shifted(self, features):
        """The text features (classes, joint) for an image, and their shift."""
        s = self.settings
        texts = self.texts
        shift = torch.zeros_like(texts if s.PER_LABEL else texts[:1], requires_grad=True)
        optimizer = torch.optim.AdamW([shift], s.LR, weight_decay=WEIGHT_DECAY)
        for _ in range(s.STEPS):
            with torch.enable_grad():
                logits = self.model.logits(features, normalize(texts + shift))
                kept = logits[most_confident(logits.detach(), s.SELECTION)]
                shift.grad = torch.autograd.grad(entropy_of_mean(kept), shift)[0]
            optimizer.step()
        shift = shift.detach()
        return normalize(texts + shift), shift
