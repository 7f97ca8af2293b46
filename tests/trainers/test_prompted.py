"""The model of every method: names in checkpoints, its own scale, and images read by what the
prompts became.
"""

import pytest
import torch
from drawn import small_clip
from torch import nn

from clip import Edit, TextPrompts, encode_image, tokenize
from trainers.base.prompted import PromptedCLIP, PromptLearner, normalize


class ReadPrompts(PromptLearner):
    """The image feature is the mean of the prompts' outputs for learned classes, CLIP's for
    others.
    """

    name = "token_learner"
    logit_scale = 7.0
    read = ("prompts",)

    def __init__(self):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(2, 64, generator=torch.manual_seed(0)))
        self.extra_modules = {"image_encoder": nn.Linear(64, 64, bias=False)}
        self.register_buffer("ids", tokenize(["a river", "a forest"]), persistent=False)

    def text(self, image_features):
        return TextPrompts(self.ids)

    def vision(self):
        return [Edit(), Edit(add=self.prompts)]

    def image(self, tower, learned):
        return normalize(
            self.extra_modules["image_encoder"](tower.prompts.mean(dim=1))
            if learned
            else tower.feature
        )


@pytest.fixture
def model():
    return PromptedCLIP(small_clip(), ReadPrompts())


@pytest.mark.parametrize("learned", [True, False])
def test_logits_can_depend_on_whether_the_classes_were_learned(model, learned):
    images = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(1))
    model.classes_learned = learned
    features = model.image_features(images)
    plain = normalize(encode_image(model.clip, images, model.prompt_learner.vision()).feature)
    assert torch.allclose(features, plain, atol=1e-6) != learned
    text = model.text_features(features)
    torch.testing.assert_close(model.logits(features, text), 7 * features @ text.T)
    torch.testing.assert_close(model(images), 7 * features @ text.T)


LEARNED = ["blue lake", "red", "green field"]


@pytest.mark.parametrize(
    ("written", "classes", "learned"),
    [
        ({"class_names": ["a", *LEARNED], "dataset": "EuroSAT"}, "base", True),
        ({"class_names": LEARNED}, "base", True),  # of an exported folder
        ({"class_names": LEARNED, "dataset": "EuroSAT"}, "all", False),
        ({"class_names": LEARNED, "dataset": "EuroSAT"}, "new", False),
        ({"class_names": LEARNED, "dataset": "ImageNet"}, "base", False),
        ({}, "base", True),  # a published checkpoint does not say it
        ({}, "all", True),
        ({}, "new", False),
        ({"class_names": 3}, "new", False),
    ],
)
def test_classes_were_learned_if_the_checkpoint_names_all_of_them(written, classes, learned, build):
    trainer = build("CoOp", classes)
    assert trainer.model.classes_learned
    checkpoint = {"state_dict": trainer.method.saved_module().state_dict(), "epoch": 1}
    trainer.method.checkpoints.load_prompts(checkpoint | {"metadata": written}, "a file")
    assert trainer.model.classes_learned == learned
