"""Checkpoints of every method, as its published code saves them, load where they fit, else are named."""

from collections import OrderedDict

import pytest
import torch
from drawn import METHODS, differing, prompts_of
from published_files import published_model, randomised, save_published

from common.errors import UsageError
from trainers import methods

pytestmark = pytest.mark.slow


def publish(trainer, folder, backbone):
    """Write a trainer's prompts as the published code of its method saves them; returns them."""
    prompts = randomised(trainer)
    state = published_model(prompts, backbone, 37)  # buffers of 37 classes
    if trainer.saved_module() is not trainer.model:  # CoOp, MMA: the learned module alone
        (name,) = (name for name, part in trainer.model.named_children() if part is trainer.saved_module())
        inner = f"module.{name}."
        state = OrderedDict((key.replace(inner, "module."), value) for key, value in state.items() if inner in key)
    if type(trainer).__name__ == "PromptSRC":
        tower = [(key, value) for key, value in state.items() if "image_encoder." in key and "VPT" not in key]
        state |= {key.replace("image_", "prompt_learner.ZS_image_"): value for key, value in tower}
    state |= {f"module.{key.replace('*', 'weight')}": torch.randn(4, 64) for key in trainer.published_unused}
    save_published(folder, state, saved_as=trainer.saved_as, val_result=None)
    return prompts


def test_contexts_of_other_classes_are_refused(build, deep, tmp_path):
    publish(build("CoOp", "base", "CSC", True), tmp_path / "published", deep)
    with pytest.raises(UsageError, match=r"ctx in .* has shape \(3, 16, 64\), expected is \(6, 16, 64\)"):
        build("CoOp", "all", "CSC", True).load_model(str(tmp_path / "published"), epoch=5)
    with pytest.raises(UsageError, match=r"ctx in .* has shape \(3, 16, 64\), expected is \(16, 64\)"):
        build("CoOp", "base").load_model(str(tmp_path / "published"), epoch=5)


@pytest.mark.thorough
def test_a_checkpoint_of_another_method_is_refused_by_its_name(build, deep, tmp_path):
    settings = {"IVLP": ("N_CTX_TEXT", 4, "N_CTX_VISION", 4)}  # as many as PromptSRC's
    trainers = {name: build(name, "base", *settings.get(name, ())) for name in METHODS}
    for given in METHODS:
        prompts = publish(build(given, "base", *settings.get(given, ())), tmp_path / given, deep)
        check_refusals(given, prompts, trainers, tmp_path / given)


def check_refusals(given, prompts, trainers, folder):
    """Of all methods, only those with the same prompts load what `given` has published in the folder."""
    source = methods()[given]  # unused tensors tell its checkpoint from those with the same learned ones
    alike = [name for name in METHODS if methods()[name].published == source.published and not source.published_unused]
    alike = alike or [given]
    names = " or ".join(alike)
    for method, trainer in trainers.items():
        before = prompts_of(trainer)
        refusal = f"is a checkpoint of {names}, not of {method}: .*--trainer {names}"
        if method in alike:  # the same prompts under the same names, perhaps of another size
            if all(value.shape == prompts[key].shape for key, value in before.items()):
                trainer.load_model(str(folder), epoch=5)
                assert differing(prompts_of(trainer), prompts) == []
                continue
            refusal = "has shape .*, expected is"
        for epoch in (5, None):
            with pytest.raises(UsageError, match=refusal):
                trainer.load_model(str(folder), epoch=epoch)
        assert differing(prompts_of(trainer), before) == []
