import torch
from dassl.engine import TRAINER_REGISTRY

from clip import TextPrompts, tokenize

from .base import PromptError, PromptLearner, PromptTrainer

# By dataset, all others "a photo of a {}." (CoOp, appendix A).
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


class HandWritten(PromptLearner):
    """A fixed sentence for each class; nothing is learned."""

    def __init__(self, template: str, classnames: list[str], context_length: int):
        super().__init__()
        ids = tokenize([template.replace("{}", name) for name in classnames], context_length)
        self.register_buffer("ids", ids, persistent=False)

    def text(self, image_features: torch.Tensor) -> TextPrompts:
        return TextPrompts(self.ids)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """CLIP as it is, with one template a dataset (Radford et al., 2021).

    Settings: PREC; TEMPLATE, a sentence with {} for the class name, in place of the dataset's.
    """

    defaults = {"PREC": "fp16", "TEMPLATE": ""}

    def build_prompts(self, clip, classnames):
        template = self.settings.TEMPLATE or TEMPLATES.get(self.cfg.DATASET.NAME, "a photo of a {}.")
        if "{}" not in template:
            raise PromptError(f"TRAINER.ZEROSHOTCLIP.TEMPLATE is {template!r}: {{}} is to stand for the class name")
        print(f"Template: {template}")
        return HandWritten(template, classnames, clip.context_length)

    def train(self):
        print("ZeroshotCLIP learns nothing: evaluating")
        self.test()

    def load_model(self, directory, epoch=None):
        """Nothing was learned, so nothing is loaded."""
