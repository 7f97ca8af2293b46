from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import BlockAdapter, TextPrompts, token_dropout, tokenizer_of
from common.errors import UsageError

from .base.prompted import PromptedCLIP, normalize
from .base.teacher import EIGHTY
from .mma import (
    AdapterLearner,
    AdapterMethod,
    AdapterSettings,
    Bottleneck,
    parts_of_adapters,
    start_weight,
)


@dataclass(frozen=True)
class MMAppSettings(AdapterSettings):
    """INPUT_PROMPTS are the sentences of a class: cupl for those of DATASET.SENTENCES, hc for
    CLIP's 80 templates. TRAIN_SCALE and TEST_SCALE are those of the adapters' outputs,
    TRAIN_SCALE_REG the weight of the consistency with smaller scales, DROP the dropout inside.
    """

    INPUT_PROMPTS: Literal["cupl", "hc"] = "cupl"
    ADAPTER_TRAIN_SCALE: int | float = 0.01
    ADAPTER_TRAIN_SCALE_REG: int | float = 2.5
    ADAPTER_TEST_SCALE: int | float = 0.0065
    ADAPTER_DROP: int | float = 0.1
    ranges = dict.fromkeys(("ADAPTER_TRAIN_SCALE", "ADAPTER_TEST_SCALE"), (0, 1000))
    ranges |= {"ADAPTER_TRAIN_SCALE_REG": (0, 1_000_000), "ADAPTER_DROP": (0, 0.95)}


class Scale(nn.Module):
    """The scale of all adapters: in training TRAIN_SCALE times `share`, else TEST_SCALE."""

    share = 1.0

    def __init__(self, settings: MMAppSettings):
        super().__init__()
        self.settings = settings

    def forward(self, y: Tensor) -> Tensor:
        if self.training:
            return self.settings.ADAPTER_TRAIN_SCALE * self.share * y
        return self.settings.ADAPTER_TEST_SCALE * y


class MMAppAdapter(BlockAdapter):
    """y = scale U dropout(relu(S relu(D x))) parallel to a block, x the output of its first layer
    norm.
    """

    def __init__(self, bottleneck: Bottleneck, shared: nn.Module, scale: Scale):
        super().__init__()
        self.bottleneck = bottleneck
        self.shared = shared
        self.scale = scale

    @property
    def is_stochastic(self) -> bool:
        return self.scale.training and self.scale.settings.ADAPTER_DROP > 0

    def parallel(self, x: Tensor) -> Tensor:
        y = self.shared(self.bottleneck.down(x))
        if self.is_stochastic:
            y = token_dropout(y, self.scale.settings.ADAPTER_DROP)
        scaled: Tensor = self.scale(self.bottleneck.up(y))
        return scaled


class MMAppLearner(AdapterLearner):
    """The adapters, and `ids` of all sentences: of the first class, of the second, ..."""

    at_input = ("visual_adapter",)  # as published

    def __init__(self, clip: Any, sentences: list[list[str]], settings: MMAppSettings):
        super().__init__()
        texts = [text for of_class in sentences for text in of_class]
        self.register_buffer("ids", tokenizer_of(clip)(texts, truncate=True), persistent=False)
        self.scale = Scale(settings)
        for name, parts in parts_of_adapters(clip, settings):
            self.add_module(name, parts)
            for parameter in parts.parameters():
                if parameter.dim() > 1:  # biases start as those of nn.Linear
                    start_weight(parameter)

    def adapter(self, bottleneck, shared):
        return MMAppAdapter(bottleneck, shared, self.scale)

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids)


class MMAppCLIP(PromptedCLIP):
    """In training the texts are one sentence of each class, in a test the means over all."""

    sentences: int  # of each class
    drawn: Tensor  # (classes,), on the CPU, rows of `ids` in this step of training

    def text_prompts(self, image_features: Tensor) -> TextPrompts:
        prompts = super().text_prompts(image_features)
        return replace(prompts, ids=prompts.ids[self.drawn]) if self.training else prompts

    def encode_text(self, image_features: Tensor) -> Tensor:
        text = super().encode_text(image_features)
        if self.training:
            return text
        return normalize(text).unflatten(0, (-1, self.sentences)).mean(dim=1)


def draw_sentences(sentences: int, classes: int) -> Tensor:
    """The number of the sentence of each class, (classes,)."""
    return torch.randint(0, sentences, (1, classes))[0]


def draw_share() -> float:
    """The share of TRAIN_SCALE in the second forward pass of a step."""
    return torch.rand(1).item()


@TRAINER_REGISTRY.register()
class MMApp(AdapterMethod):
    """MMA++: MMA whose features agree over scales and sentences (Yang et al., TPAMI 2026)."""

    Settings = MMAppSettings
    takes_plugins = False
    Model = MMAppCLIP
    model: MMAppCLIP
    kind = "extra text"
    reads_sentences = True
    published_sections = ("TRAINER.MMADAPTERPP",)

    @classmethod
    def check_settings(cls, cfg):
        super().check_settings(cfg)
        if cls.settings_of(cfg).INPUT_PROMPTS == "cupl" and not cfg.DATASET.get("SENTENCES", ""):
            fault = "MMApp has no sentences for the classes"
            raise UsageError(
                fault, "give DATASET.SENTENCES FILE, or TRAINER.MMAPP.INPUT_PROMPTS hc"
            )

    @property
    def texts(self) -> list[list[str]]:
        """The sentences of each class, as many of each."""
        if self.settings.INPUT_PROMPTS == "hc":
            return [[text.replace("{}", name) for text in EIGHTY] for name in self.class_names]
        texts = self.own_sentences()
        if len(counts := {len(of_class) for of_class in texts}) > 1:
            fault = f"the classes have {min(counts)} to {max(counts)} sentences"
            raise UsageError(fault, "give as many for each class in DATASET.SENTENCES")
        return texts

    def build_prompts(self, clip, classnames):
        self.check_blocks(clip)
        return MMAppLearner(clip, self.texts, self.settings)

    def after_build(self):
        super().after_build()
        self.model.sentences = len(self.texts[0])
        self.model.drawn = self.model.sentences * torch.arange(len(self.class_names))

    def training_step(self, batch):
        classes = len(self.class_names)
        first = self.model.sentences * torch.arange(classes)
        self.model.drawn = first + draw_sentences(self.model.sentences, classes)
        return super().training_step(batch)

    def loss(self, output, labels):
        """Cross-entropy, minus the cosines of both features with those at a smaller scale."""
        model = self.model
        scale: Any = model.prompt_learner.scale
        scale.share = draw_share()
        with torch.no_grad():
            text = model.of_text(
                model.towers.encode_text(model.clip, model.text_prompts(output.image))
            )
            image = model.image_features(output.images)
        scale.share = 1.0
        ce = F.cross_entropy(output.logits, labels)
        text_cos = (output.text * text).sum(dim=-1).mean()
        image_cos = (output.image * image).sum(dim=-1).mean()
        loss = ce - self.settings.ADAPTER_TRAIN_SCALE_REG * (text_cos + image_cos)
        return loss, {"loss_ce": ce, "loss_text_cos": text_cos, "loss_image_cos": image_cos}
