"""Run a script on a stand-in for the published Dassl 0.6.3: `python tests/published_dassl.py SCRIPT ARGUMENTS`.

It has the names in NAMES, and no others. Those that this file does not define are the toolbox's, which behave as
published. The others are new, because the published ones differ from the toolbox: the configuration has yacs'
nodes and lacks the toolbox's own keys, the log closes the console when it is deleted, images are read as stored,
loaders are plain, and a trainer keeps no record of its run or its test.
"""

import os
import runpy
import sys
from importlib import import_module
from types import ModuleType

import torch
from dassl.config import get_cfg_default as toolbox_defaults
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform as toolbox_transform
from dassl.evaluation import build_evaluator
from dassl.utils import resume_from_checkpoint
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from yacs.config import CfgNode

NAMES = {  # of the published package, as far as this project imports them
    "dassl.config": "clean_cfg get_cfg_default",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
    "dassl.data.transforms": "build_transform",
    "dassl.engine": "TRAINER_REGISTRY TrainerX build_trainer",
    "dassl.metrics": "compute_accuracy",
    "dassl.optim": "build_lr_scheduler build_optimizer",
    "dassl.utils": "count_num_param load_checkpoint load_pretrained_weights read_image set_random_seed setup_logger",
}
TOOLBOX_KEYS = ["CACHE", "CACHE_GB", "INPUT.MAX_PIXELS", "INPUT.EXIF_ORIENTATION", "OPTIM.ADAM_EPS"]
TOOLBOX_KEYS += ["DATALOADER.CACHE", "DATALOADER.CACHE_GB", "DATALOADER.CACHE_TEST"]


def plain(node, prefix=""):
    cfg = CfgNode()
    for key, value in node.items():
        if f"{prefix}{key}" not in TOOLBOX_KEYS:
            cfg[key] = plain(value, f"{key}.") if isinstance(value, CfgNode) else value
    return cfg


def get_cfg_default():
    return plain(toolbox_defaults())


class Logger:
    def __init__(self, path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.console, self.file = sys.stdout, open(path, "w")  # noqa: SIM115 - closed by close()

    def __del__(self):
        self.close()

    def write(self, text):
        self.console.write(text)
        self.file.write(text)

    def flush(self):
        self.console.flush()
        self.file.flush()

    def close(self):
        self.console.close()
        self.file.close()


def setup_logger(output=None):
    sys.stdout = Logger(os.path.join(output, "log.txt"))


def read_image(path):
    return Image.open(path).convert("RGB")


def build_optimizer(model, optim_cfg, param_groups=None):
    groups = param_groups or model.parameters()
    return torch.optim.SGD(groups, optim_cfg.LR, optim_cfg.MOMENTUM, weight_decay=optim_cfg.WEIGHT_DECAY)


def build_transform(cfg, is_train=True, choices=None):
    return toolbox_transform(cfg, is_train, choices)


class DatasetWrapper(Dataset):
    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.data_source, self.transform = data_source, transform

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, index):
        item = self.data_source[index]
        facts = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        return {"img": self.transform(read_image(item.impath)), **facts}


class DataManager:
    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        def loader(items, options, is_train):
            transform = build_transform(cfg, is_train=is_train)
            return DataLoader(
                DatasetWrapper(cfg, items, transform=transform, is_train=is_train),
                batch_size=options.BATCH_SIZE,
                sampler=(RandomSampler if options.SAMPLER == "RandomSampler" else SequentialSampler)(items),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
                drop_last=is_train and len(items) >= options.BATCH_SIZE,
            )

        self.dataset = dataset = build_dataset(cfg)
        self.train_loader_x = loader(dataset.train_x, cfg.DATALOADER.TRAIN_X, True)
        self.val_loader = loader(dataset.val, cfg.DATALOADER.TEST, False) if dataset.val else None
        self.test_loader = loader(dataset.test, cfg.DATALOADER.TEST, False)
        self.num_classes, self.lab2cname = dataset.num_classes, dataset.lab2cname


class TrainerX:
    def __init__(self, cfg):
        self._models, self._optims, self._scheds, self._writer = {}, {}, {}, None
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch, self.output_dir, self.cfg = cfg.OPTIM.MAX_EPOCH, cfg.OUTPUT_DIR, cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def build_data_loader(self):
        self.dm = DataManager(self.cfg)
        self.train_loader_x, self.val_loader = self.dm.train_loader_x, self.dm.val_loader
        self.test_loader, self.num_classes, self.lab2cname = self.dm.test_loader, self.dm.num_classes, self.dm.lab2cname

    def register_model(self, name="model", model=None, optim=None, sched=None):
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None):
        return list(self._models)

    def set_model_mode(self, mode="train", names=None):
        for model in self._models.values():
            model.train(mode == "train")

    def update_lr(self, names=None):
        for scheduler in filter(None, self._scheds.values()):
            scheduler.step()

    def detect_anomaly(self, loss):
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def save_model(self, epoch, directory):
        for name, model in self._models.items():
            state = {"state_dict": model.state_dict(), "epoch": epoch + 1}
            for key, part in {"optimizer": self._optims[name], "scheduler": self._scheds[name]}.items():
                state[key] = part and part.state_dict()
            folder, file = os.path.join(directory, name), f"model.pth.tar-{epoch + 1}"
            os.makedirs(folder, exist_ok=True)
            torch.save(state, os.path.join(folder, file))
            with open(os.path.join(folder, "checkpoint"), "w") as newest:
                newest.write(f"{file}\n")

    def train(self):
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self):
        for name in self._models:
            folder = os.path.join(self.cfg.RESUME or self.cfg.OUTPUT_DIR, name)
            if os.path.exists(folder):
                parts = self._models[name], self._optims[name], self._scheds[name]
                self.start_epoch = resume_from_checkpoint(folder, *parts)

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            losses = self.forward_backward(batch)
            print(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch_idx + 1}/{self.num_batches}] {losses}")

    def after_epoch(self):
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            self.test(split="val")
        if self.epoch + 1 == self.max_epoch:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        self.test()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.val_loader if (split or self.cfg.TEST.SPLIT) == "val" else self.test_loader:
            images, labels = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(images), labels)
        return next(iter(self.evaluator.evaluate().values()))

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


def install():
    """Replace the toolbox by the stand-in."""
    modules = {"dassl": {}}
    for module, names in NAMES.items():
        found = import_module(module)
        modules[module] = {name: globals().get(name) or getattr(found, name) for name in names.split()}
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        del sys.modules[name]
    for module, members in modules.items():
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(members)


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
