"""A run of some steps that notes what it sees, for comparison with another way to compute the same."""

from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import ADAPTED, METHODS, make_cfg

from clip import current_ranks
from trainers import methods
from trainers.base.ranks import split

# A prompt of every kind that differs from the default: by class, in the middle of the words, or by another loss.
SETTINGS = {
    "CoOp by class": ("CoOp", "CSC", True, "CLASS_TOKEN_POSITION", "middle"),
    "UPT mixed": ("UPT", "UNIFIED", True),
}
CASES = {name: (name,) for name in METHODS if name not in ADAPTED} | SETTINGS


class Counted:
    """Towers that note their calls: the function, whether it is a training step's, and the number of images."""

    def __init__(self, towers, trainer, calls):
        self.towers, self.trainer, self.calls = towers, trainer, calls

    def __getattr__(self, name):
        def call(clip, *arguments):
            images = len(arguments[0]) if name != "encode_text" else 0
            self.calls.append((name, self.trainer.model.training, images))
            return getattr(self.towers, name)(clip, *arguments)

        return call


class Recorder:
    """Trains a seed for some steps, alone or on several ranks, and notes what it sees."""

    def __init__(self, root, backbone, output, seed, case, options=()):
        self.seed, (method, *settings) = seed, CASES[case]
        pairs = {"PREC": "fp32"} | dict(zip(settings[::2], settings[1::2], strict=True))
        section = methods()[method].section()
        self.settings = [item for key, value in pairs.items() for item in (f"TRAINER.{section}.{key}", value)]
        few = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.002, "SEED", seed, *options]
        self.cfg = make_cfg(method, root, backbone, output / f"seed{seed}", *few, *self.settings)
        self.paths, self.logits, self.calls = [], [], []

    def build(self, double=False):
        set_random_seed(self.seed)
        self.trainer = trainer = build_trainer(self.cfg)
        if double:
            trainer.model.double()
        trainer.model.towers = Counted(trainer.model.towers, trainer, self.calls)
        split(trainer, current_ranks())
        self.start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        loss, step = trainer.loss, trainer.forward_backward

        def noted_loss(output, labels):
            self.logits.append(output.logits.detach().clone())
            return loss(output, labels)

        def noted_step(batch):
            self.paths.append(batch["impath"])
            return step(batch)

        trainer.loss, trainer.forward_backward = noted_loss, noted_step


def assert_close(a, b, bound):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value - b[name]).abs().max() <= bound * max(1, value.abs().max()), name
