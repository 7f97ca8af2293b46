"""Trainers of methods on features."""

import torch
from dassl.engine import build_trainer
from drawn import make_cfg

import trainers
from trainers.base.feature_method import FeatureMethod, FittedMethod

METHODS = {
    name: kind for name, kind in trainers.methods().items() if issubclass(kind, FeatureMethod)
}


def maker(eurosat, tiny, tmp_path):
    """`make("GDA", KEY, VALUE, ...)` -> a trainer on four images of each class, for 2 epochs if it
    learns by steps.
    """

    def make(method, *options, root=eurosat, output="run"):
        section = trainers.methods()[method].section()
        epochs = 1 if issubclass(METHODS.get(method, FeatureMethod), FittedMethod) else 2
        pairs = {
            "DATASET.NUM_SHOTS": 4,
            "OPTIM.MAX_EPOCH": epochs,
            f"TRAINER.{section}.PREC": "fp32",
        }
        pairs |= dict(zip(options[::2], options[1::2], strict=True))
        torch.manual_seed(1)
        options = [item for pair in pairs.items() for item in pair]
        return build_trainer(make_cfg(method, root, tiny, tmp_path / output, *options))

    return make


def images_of(trainer):
    dataset = trainer.test_loader.dataset
    return torch.stack([dataset[number]["img"] for number in range(len(dataset))]).to(
        trainer.device
    )
