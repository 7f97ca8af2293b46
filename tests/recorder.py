"""A run of some steps that notes what it sees, for comparison with another way to compute the same."""

from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import ADAPTED, METHODS, make_cfg, section_pairs

from clip import current_ranks
from trainers.base.ranks import split

# A prompt of every kind that differs from the default: by class, in the middle of the words, or by another loss.
SETTINGS = {
    "CoOp by class": ("CoOp", "CSC", True, "CLASS_TOKEN_POSITION", "middle"),
    "UPT mixed": ("UPT", "UNIFIED", True),
}
CASES = {name: (name,) for name in METHODS if name not in ADAPTED} | SETTINGS


class Counted:
    """Towers that note the number of images in each call of a training step."""

    def __init__(self, towers, trainer, images):
        self.towers, self.trainer, self.images = towers, trainer, images

    def __getattr__(self, name):
        def call(clip, *arguments):
            if name != "encode_text" and self.trainer.model.training:
                self.images.append(len(arguments[0]))
            return getattr(self.towers, name)(clip, *arguments)

        return call


class Recorder:
    """A seed's trainer, alone or on several ranks, which notes what it sees."""

    def __init__(self, root, backbone, output, case, options=(), seed=1, double=False):
        method, *settings = CASES[case]
        pairs = {"PREC": "fp32"} | dict(zip(settings[::2], settings[1::2], strict=True))
        settings = section_pairs(method, pairs)
        few = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.002, "SEED", seed, *options]
        self.paths, self.logits, self.images = [], [], []
        set_random_seed(seed)
        self.trainer = trainer = build_trainer(make_cfg(method, root, backbone, output, *few, *settings))
        if double:
            trainer.model.double()
        trainer.model.towers = Counted(trainer.model.towers, trainer, self.images)
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
