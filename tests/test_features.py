"""CACHE: which methods read the features of a frozen, unprompted image tower from a file, with the
same results.
"""

from dataclasses import replace

import pytest
import torch
from caching import IMAGES, OFF, values
from dassl.engine import TRAINER_REGISTRY
from drawn import METHODS, differing, prompts_of
from marks import one_line, thorough_but
from torch import nn

from trainers import methods
from trainers.base import Method
from trainers.base.feature_method import FeatureMethod
from trainers.base.prompted import PromptedCLIP
from trainers.coop import CoOp

pytestmark = pytest.mark.slow

TEXT_ONLY = {"CoOp", "CoCoOp", "KgCoOp", "NLPrompt", "ProGrad", "TCP"}
ALL = {"ZeroshotCLIP", "LinearProbe", *METHODS}


@pytest.mark.parametrize(
    "method", thorough_but(("CoOp", "CoCoOp", "MPL", "UPT", "CLIPLoRA"), sorted(ALL))
)
def test_methods_without_vision_prompts_read_each_image_once(method, cached, deep, work, kept):
    computed = values(cached(method, *OFF, backbone=deep))
    assert torch.equal(values(cached(method, backbone=deep)), computed)
    work.clear()
    trainer = cached(method, backbone=deep)
    assert torch.equal(values(trainer), computed)
    assert trainer.n_test == len(computed) == IMAGES
    if method in {"ZeroshotCLIP", *TEXT_ONLY} or issubclass(methods()[method], FeatureMethod):
        assert work == [1] and len(kept()) == 1
    else:
        assert not kept()


class Adapted(PromptedCLIP):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = nn.Parameter(torch.ones(self.clip.visual.output_dim))

    def of_tower(self, tower):
        return super().of_tower(replace(tower, feature=tower.feature + self.shift))


class Flipped(PromptedCLIP):
    def image_output(self, images):
        return super().image_output(images.flip(-1) if isinstance(images, torch.Tensor) else images)


@pytest.fixture
def mine(monkeypatch):
    """`mine(own)` registers CoOp with these attributes as the method "Mine"."""
    return lambda own: monkeypatch.setitem(
        TRAINER_REGISTRY._obj_map, "Mine", type("Mine", (CoOp,), own)
    )


DEPTHS = ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 0, "TRAINER.IVLP.PROMPT_DEPTH_TEXT", 2]
# A method, its settings, attributes of the user's own, and the number of files with CoOp's
FILES = {
    "usual": ("ZeroshotCLIP", [], {}, 1),
    "no vision prompts": ("IVLP", DEPTHS, {}, 1),
    "adapter": ("Mine", [], {"Model": Adapted}, 1),
    "model": ("Mine", [], {"Model": Flipped}, 2),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_method_has_its_own_features_if_it_reads_images_itself(case, cached, work, kept, mine):
    method, options, own, files = case
    mine(own)
    values(cached("CoOp"))
    computed = values(cached(method, *options, *OFF))
    assert torch.equal(values(cached(method, *options)), computed)
    work.clear()
    assert torch.equal(values(cached(method, *options)), computed)
    assert work == [1] and len(kept()) == files


@pytest.mark.parametrize(
    "own",
    [
        {"model_inference": lambda self, images: Method.model_inference(self, images.flip(-1))},
        {"parse_batch": lambda self, batch: (batch["img"].flip(-1), batch["label"])},
    ],
)
def test_new_method_with_its_own_reading_of_images_is_refused(own, cached, mine):
    mine(own)
    with one_line("this method reads the images: unset it"):
        values(cached("Mine"))


def test_shuffled_tests_are_not_kept(cached, kept):
    values(cached("CoOp", "DATALOADER.TEST.SAMPLER", "RandomSampler"))
    assert not kept()


def test_training_is_the_same_when_each_epoch_is_validated(cached):
    """A loader that does not run also draws its number from the random generator."""
    learned = []
    for output, cache in (("a", OFF), ("b", ()), ("c", ())):
        trainer = cached(
            "CoOp", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, *cache, output=output
        )
        trainer.train()
        learned.append(prompts_of(trainer))
    assert differing(*learned[:2]) == differing(*learned[1:]) == []
