"""The model of every method: names in checkpoints, its own scale, and images read by what the prompts became."""

import pytest
import torch
from drawn import small_clip
from torch import nn

from clip import Edit, TextPrompts, encode_image, tokenize
from common.start import ROOT
from trainers.base.prompted import PromptedCLIP, PromptLearner, normalize


class ReadPrompts(PromptLearner):
    """The image feature is the mean of the prompts' outputs for learned classes, CLIP's for others."""

    name, logit_scale, read = "token_learner", 7.0, ("prompts",)

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
        return normalize(self.extra_modules["image_encoder"](tower.prompts.mean(dim=1)) if learned else tower.feature)


@pytest.fixture
def model():
    return PromptedCLIP(small_clip(), ReadPrompts())


def test_prompt_learner_has_its_own_name_in_checkpoints(model):
    names = ["token_learner.prompts", "image_encoder.weight"]
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()] == names
    assert model.prompt_learner is model.token_learner
    assert {parameter.dtype for parameter in model.double().parameters()} == {torch.double}


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


@pytest.mark.parametrize(
    ("written", "classes", "learned"),
    [
        ({"class_names": ["a", "blue lake", "red", "green field"], "dataset": "EuroSAT"}, "base", True),
        ({"class_names": ["blue lake", "red", "green field"]}, "base", True),  # of an exported folder
        ({"class_names": ["blue lake", "red", "green field"], "dataset": "EuroSAT"}, "all", False),
        ({"class_names": ["blue lake", "red", "green field"], "dataset": "EuroSAT"}, "new", False),
        ({"class_names": ["blue lake", "red", "green field"], "dataset": "ImageNet"}, "base", False),
        ({}, "base", True),  # a published checkpoint does not say it
        ({}, "all", True),
        ({}, "new", False),
        ({"class_names": 3}, "new", False),
    ],
)
def test_classes_were_learned_if_the_checkpoint_names_all_of_them(written, classes, learned, build):
    trainer = build("CoOp", classes)
    assert trainer.model.classes_learned
    assert trainer.were_learned(written) == learned
    checkpoint = {"state_dict": trainer.saved_module().state_dict(), "epoch": 1}
    trainer.load_prompts(checkpoint | {"metadata": written}, "a file")
    assert trainer.model.classes_learned == learned


def test_checkpoints_say_on_what_they_were_learned(build):
    metadata = build("CoOp", "base").checkpoint_metadata()
    assert (metadata["dataset"], metadata["class_names"]) == ("EuroSAT", ["red", "green field", "blue lake"])


@pytest.fixture
def mmrl(launch, eurosat, deep, tmp_path):
    """`mmrl(folder, classes, *options)` runs train.py with MMRL's base-to-new YAML; its log."""

    def mmrl(folder, classes, *options, overrides=()):
        argv = ["--root", eurosat, "--backbone", deep, "--output-dir", tmp_path / folder, "--seed", 1]
        argv += ["--trainer", "MMRL", "--config-file", ROOT / "configs/trainers/MMRL/vit_b16.yaml"]
        argv += ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml", *options]
        argv += ["DATASET.SUBSAMPLE_CLASSES", classes, "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0]
        argv += ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "TRAINER.MMRL.PREC", "fp32", *overrides]
        ended = launch(*argv)
        assert ended.status == 0, ended.errors
        return (tmp_path / folder / "log.txt").read_text()

    return mmrl


def test_a_test_of_mmrl_says_how_it_reads_images(mmrl, stand_in, tmp_path):
    log = mmrl("base", "base")
    assert "(BY_DATASET): TRAINER.MMRL.REG_WEIGHT 0.01, TRAINER.MMRL.REP_DIM 2048\n" in log
    test = ("--eval-only", "--model-dir", tmp_path / "base")
    wide = ("TRAINER.MMRL.REP_DIM", 2048)
    for folder, classes, kind in (("base again", "base", "learned"), ("new", "new", "new"), ("all", "all", "new")):
        log = mmrl(folder, classes, *test, overrides=() if classes != "all" else wide)
        assert f"Images are read as those of {kind} classes\n" in log
    stand_in("Food101")
    log = mmrl("other", "base", *test, overrides=("DATASET.NAME", "Food101", *wide))
    assert "Images are read as those of new classes\n" in log


@pytest.mark.parametrize(
    ("classes", "task", "kind"),
    [("base", "", "learned"), ("new", "", "new"), ("all", "FS", "learned"), ("all", "CD", "new")],
)
def test_a_published_checkpoint_of_mmrl_is_read_by_its_task(classes, task, kind, build):
    trainer = build("MMRL", classes, "TASK", task)
    trainer.load_prompts({"state_dict": trainer.model.state_dict(), "epoch": 10}, "a file")
    assert trainer.model.classes_learned == (kind == "learned")
