"""A small third-party project in the style of published CoOp projects: a dataset, a trainer, a config."""

import os.path as osp
import pickle
import random

import torch
import torch.nn as nn
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights, mkdir_if_missing, read_json, set_random_seed, write_json
from PIL import Image
from torch.nn import functional as F
from yacs.config import CfgNode as CN

CLASSNAMES = ["red square", "green square", "blue square"]


def make_images(root, per_class=8):
    """Write noisy coloured 16x16 PNGs and a split file under `root`."""
    rng = random.Random(0)
    split = {"train": [], "val": [], "test": []}
    for label, classname in enumerate(CLASSNAMES):
        for i in range(per_class * 2):
            impath = f"{classname.replace(' ', '_')}_{i}.png"
            noise = bytes(rng.randrange(200) for _ in range(16 * 16 * 3))
            image = Image.frombytes("RGB", (16, 16), noise)
            channels = list(image.split())
            channels[label] = channels[label].point(lambda value: min(value + 55, 255))
            mkdir_if_missing(osp.join(root, "tiny", "images"))
            Image.merge("RGB", channels).save(osp.join(root, "tiny", "images", impath))
            name = "train" if i < per_class else ("val" if i < per_class * 3 // 2 else "test")
            split[name].append((impath, label, classname))
    write_json(split, osp.join(root, "tiny", "split.json"))


@DATASET_REGISTRY.register()
class TinySquares(DatasetBase):
    dataset_dir = "tiny"

    def __init__(self, cfg):
        root = osp.abspath(osp.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = osp.join(root, self.dataset_dir)
        self.image_dir = osp.join(self.dataset_dir, "images")
        self.split_fewshot_dir = osp.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)

        split = read_json(osp.join(self.dataset_dir, "split.json"))
        train, val, test = (self._read(split[name]) for name in ("train", "val", "test"))

        preprocessed = osp.join(self.split_fewshot_dir, f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}.pkl")
        if osp.exists(preprocessed):
            with open(preprocessed, "rb") as file:
                train, val = pickle.load(file)
        else:
            train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
            val = self.generate_fewshot_dataset(val, num_shots=min(cfg.DATASET.NUM_SHOTS, 4))
            with open(preprocessed, "wb") as file:
                pickle.dump((train, val), file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, val=val, test=test)

    def _read(self, rows):
        return [
            Datum(impath=osp.join(self.image_dir, impath), label=int(label), classname=classname)
            for impath, label, classname in rows
        ]


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, dim):
        super().__init__()
        self.n_cls = len(classnames)
        self.ctx = nn.Parameter(torch.randn(cfg.TRAINER.TINYPROMPT.N_CTX, dim) * 0.02)
        self.scale = nn.Parameter(torch.randn(self.n_cls, dim) * 0.02)
        self.register_buffer("token_prefix", torch.randn(self.n_cls, 1, dim))

    def forward(self):
        return self.token_prefix[:, 0] * self.scale + self.ctx.mean(0)  # (n_cls, dim)


class TinyCLIP(nn.Module):
    def __init__(self, cfg, classnames):
        super().__init__()
        dim = 3 * 8 * 8
        self.prompt_learner = PromptLearner(cfg, classnames, dim)
        self.image_encoder = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(dim, dim))
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
        classnames = self.dm.dataset.classnames
        self.model = TinyCLIP(cfg, classnames)
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
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


def make_cfg(root, output_dir, *opts):
    """The config of the project; `opts` (KEY, VALUE, ...) are merged last."""
    cfg = get_cfg_default()
    cfg.TRAINER.TINYPROMPT = CN()
    cfg.TRAINER.TINYPROMPT.N_CTX = 4
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_list(
        [
            *("DATASET.ROOT", str(root), "DATASET.NAME", "TinySquares", "DATASET.NUM_SHOTS", 4, "SEED", 1),
            *("OUTPUT_DIR", str(output_dir), "TRAINER.NAME", "TinyPrompt", "USE_CUDA", False),
            *("INPUT.SIZE", (16, 16), "INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize")),
            *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 8),
            *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.1, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_SCHEDULER", "cosine"),
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
        self.function, self.args = function, args

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
    return {path: leaf for key, item in items for path, leaf in flat(item, f"{prefix}/{key}").items()}
