"""A small third-party project in the style of published CoOp projects: a dataset, a trainer, a
config.
"""

import os.path as osp
import random

import torch
import torch.nn as nn
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    load_pretrained_weights,
    mkdir_if_missing,
    read_json,
    set_random_seed,
    write_json,
)
from PIL import Image
from torch.nn import functional as F
from yacs.config import CfgNode as CN

CLASSNAMES = ["red square", "green square", "blue square"]


def make_images(root):
    """Write noisy coloured 16x16 PNGs and a split file under `root`: 8 / 4 / 4 images of each
    class.
    """
    rng = random.Random(0)
    split = {"train": [], "val": [], "test": []}
    mkdir_if_missing(osp.join(root, "tiny", "images"))
    for label, classname in enumerate(CLASSNAMES):
        for i, part in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
            impath = osp.join("images", f"{classname.replace(' ', '_')}_{i}.png")
            image = Image.frombytes(
                "RGB", (16, 16), bytes(rng.randrange(200) for _ in range(16 * 16 * 3))
            )
            channels = list(image.split())
            channels[label] = channels[label].point(lambda value: min(value + 55, 255))
            Image.merge("RGB", channels).save(osp.join(root, "tiny", impath))
            split[part].append((impath, label, classname))
    write_json(split, osp.join(root, "tiny", "split.json"))


@DATASET_REGISTRY.register()
class TinySquares(DatasetBase):
    dataset_dir = "tiny"

    def __init__(self, cfg):
        folder = osp.join(osp.abspath(osp.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        train, val, test = (
            [
                Datum(osp.join(folder, impath), int(label), classname=classname)
                for impath, label, classname in rows
            ]
            for rows in read_json(osp.join(folder, "split.json")).values()
        )
        random.seed(cfg.SEED)  # each build has the same samples
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        val = self.generate_fewshot_dataset(val, num_shots=min(cfg.DATASET.NUM_SHOTS, 4))
        super().__init__(train_x=train, val=val, test=test)


class PromptLearner(nn.Module):
    def __init__(self, n_ctx, n_cls, dim):
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(n_ctx, dim) * 0.02)
        self.scale = nn.Parameter(torch.randn(n_cls, dim) * 0.02)
        self.register_buffer("token_prefix", torch.randn(n_cls, 1, dim))

    def forward(self):
        return self.token_prefix[:, 0] * self.scale + self.ctx.mean(0)  # (n_cls, dim)


class TinyCLIP(nn.Module):
    def __init__(self, n_ctx, n_cls):
        super().__init__()
        dim = 3 * 8 * 8
        self.prompt_learner = PromptLearner(n_ctx, n_cls, dim)
        self.image_encoder = nn.Sequential(
            nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(dim, dim)
        )
        self.dropout = nn.Dropout(0.1)  # uses random numbers of the main process, too
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image):
        features = F.normalize(self.dropout(self.image_encoder(image)), dim=-1)
        text = F.normalize(self.prompt_learner(), dim=-1)
        return self.logit_scale.exp() * features @ text.t()


@TRAINER_REGISTRY.register()
class TinyPrompt(TrainerX):
    def build_model(self):
        cfg = self.cfg
        self.model = TinyCLIP(cfg.TRAINER.TINYPROMPT.N_CTX, len(self.dm.dataset.classnames))
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


def make_cfg(root, output_dir, *opts):
    """The config of the project; `opts` (KEY, VALUE, ...) are merged last."""
    cfg = get_cfg_default()
    cfg.TRAINER.TINYPROMPT = CN({"N_CTX": 4})
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_list(
        [
            *(
                "DATASET.ROOT",
                str(root),
                "DATASET.NAME",
                "TinySquares",
                "DATASET.NUM_SHOTS",
                4,
                "SEED",
                1,
            ),
            *("OUTPUT_DIR", str(output_dir), "TRAINER.NAME", "TinyPrompt", "USE_CUDA", False),
            *(
                "INPUT.SIZE",
                (16, 16),
                "INPUT.TRANSFORMS",
                ("random_resized_crop", "random_flip", "normalize"),
            ),
            *(
                "DATALOADER.NUM_WORKERS",
                0,
                "DATALOADER.TRAIN_X.BATCH_SIZE",
                4,
                "DATALOADER.TEST.BATCH_SIZE",
                8,
            ),
            *(
                "OPTIM.NAME",
                "sgd",
                "OPTIM.LR",
                0.1,
                "OPTIM.MAX_EPOCH",
                3,
                "OPTIM.LR_SCHEDULER",
                "cosine",
            ),
            *("OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", "TRAIN.PRINT_FREQ", 1),
            *opts,
        ]
    )
    cfg.freeze()
    return cfg


def make_trainer(root, output_dir, *opts):
    """A trainer of the project, built with seed 1."""
    set_random_seed(1)
    return build_trainer(make_cfg(root, output_dir, *opts))


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.function = function
        self.args = args

    def __reduce__(self):
        return self.function, self.args


def flat(value, prefix=""):
    """Nested dicts and lists as `{path: leaf}`."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {
        path: leaf for key, item in items for path, leaf in flat(item, f"{prefix}/{key}").items()
    }
