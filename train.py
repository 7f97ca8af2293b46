"""Train or test one method on one dataset: arguments -> configuration -> trainer -> results.

    python train.py --root data --trainer MPL --dataset-config-file configs/datasets/eurosat.yaml \
        --config-file configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml --output-dir output/mpl DATASET.NUM_SHOTS 16

The command line is CoOp's. A run leaves log.txt, config.yaml, tensorboard/, the learned prompts and, last of all,
results.json in its output folder. A run that was cut off goes on from its last whole epoch when started again.
"""

import argparse
import io
import json
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from functools import reduce
from operator import getitem
from pathlib import Path

import open_clip
import torch
import torchvision
import yaml
from dassl.config import clean_cfg, get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from yacs.config import CfgNode

import datasets
import trainers

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML's faster one, where it was built with it
# Settings that may differ when a run is resumed: what it computes stays the same, or as near as another machine allows.
HARMLESS = {
    "DATASET.ROOT",
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_GB",
    "MODEL.COMPILE",
    "MODEL.BACKBONE.TOWERS",
    "MODEL.BACKBONE.CHECKPOINT_TEXT",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
}

# What results.json says of its run's settings, and which they are.
RECORDED = {
    "trainer": "TRAINER.NAME",
    "dataset": "DATASET.NAME",
    "seed": "SEED",
    "shots": "DATASET.NUM_SHOTS",
    "classes": "DATASET.SUBSAMPLE_CLASSES",
    "backbone": "MODEL.BACKBONE.NAME",
}


class SettingError(ValueError):
    """An argument that cannot be (one line)."""

    one_line = True


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train or test one method on one dataset.",
        epilog="Trailing KEY VALUE pairs override the YAML files, e.g. OPTIM.LR 0.002 DATASET.NUM_SHOTS 16.",
    )
    parser.add_argument("--root", default="", help="folder of the datasets")
    parser.add_argument("--output-dir", default="", help="folder of this run's results (default: ./output)")
    parser.add_argument("--resume", default="", help="folder of a run to go on from (default: the output folder)")
    parser.add_argument("--seed", type=int, default=-1, help="chooses the few-shot images and fixes all randomness")
    parser.add_argument("--source-domains", nargs="+", help="for domain adaptation and generalisation trainers")
    parser.add_argument("--target-domains", nargs="+", help="likewise")
    parser.add_argument("--transforms", nargs="+", help="data augmentation, replacing INPUT.TRANSFORMS")
    parser.add_argument("--config-file", default="", help="YAML of the method")
    parser.add_argument("--dataset-config-file", default="", help="YAML of the dataset")
    parser.add_argument("--trainer", default="", help="name of the method: MPL, ZeroshotCLIP, ...")
    parser.add_argument("--backbone", default="", help="ViT-B/16, RN50, ..., small, a weight file, or architecture:tag")
    parser.add_argument("--head", default="", help="name of the head (Dassl's own trainers)")
    parser.add_argument("--eval-only", action="store_true", help="test the prompts in --model-dir, train nothing")
    parser.add_argument("--model-dir", default="", help="output folder of the run to test")
    parser.add_argument("--load-epoch", type=int, help="which epoch to test (default: the best, else the newest)")
    parser.add_argument("--skip-finished", action="store_true", help="do nothing if this very run is there, finished")
    parser.add_argument("--no-train", action="store_true", help="build everything, then stop")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings to override")
    return parser.parse_args(argv)


def extend_cfg(cfg: CfgNode) -> None:
    """Add this project's keys to Dassl's: which images, the form of the towers, and TRAINER.<METHOD>.*"""
    cfg.MODEL.COMPILE = False  # put the towers' layers through torch.compile (CUDA)
    cfg.MODEL.BACKBONE.TOWERS = "fast"  # or plain, which computes the same step by step
    cfg.MODEL.BACKBONE.CHECKPOINT_TEXT = False  # compute the text tower anew in the backward pass: less memory
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Dassl's defaults, then the dataset's YAML, the method's YAML, the arguments, the trailing pairs."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for file in (args.dataset_config_file, args.config_file):
        if file:
            merge(cfg, lambda file=file: cfg.merge_from_file(file))
    for key, value in {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "SEED": args.seed if args.seed >= 0 else None,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }.items():
        if value not in (None, ""):
            *groups, name = key.split(".")  # not by yacs, which would take "--output-dir 2024" for a number
            setattr(reduce(getitem, groups, cfg), name, value)
    if len(args.opts) % 2:
        raise SettingError(f"{args.opts[-1]!r} has no value: what follows the options are pairs of KEY VALUE")
    merge(cfg, lambda: cfg.merge_from_list(args.opts))
    clean_cfg(cfg, cfg.TRAINER.NAME)
    cfg.freeze()
    return cfg


def merge(cfg: CfgNode, load: Callable[[], None]) -> None:
    """Run a merge that may give a number or a list to the settings which a method calls per-layer.

    yacs holds every key to the type of its default, except where that is None.
    """
    flexible = [(cfg.TRAINER[m.section()], key) for m in trainers.PromptTrainer.methods for key in m.per_layer]
    defaults = [node[key] for node, key in flexible]
    for node, key in flexible:
        node[key] = None
    load()
    for (node, key), default in zip(flexible, defaults, strict=True):
        if node[key] is None:
            node[key] = default


def check_settings(cfg: CfgNode, finished: bool) -> None:
    """Refuse to go on with a run, or to take it for finished, under other settings than it was begun with."""
    folder, before = Path(cfg.OUTPUT_DIR), {}
    try:
        file = folder / "config.yaml"
        if file.is_file() and (finished or any(folder.glob("*/model*.pth.tar*"))):
            before = flatten(yaml.load(file.read_text(), LOADER))
        if finished:  # the file may have come here from another run
            file = folder / "results.json"
            told = dict(json.loads(file.read_text()).items())
            before |= {setting: told[key] for key, setting in RECORDED.items() if key in told}
    except (yaml.YAMLError, ValueError, AttributeError, TypeError):
        raise SettingError(f"{file} is damaged: restore or delete it, or choose another --output-dir") from None
    now = flatten(yaml.load(cfg.dump(), LOADER)) if before else {}
    harmless = HARMLESS - {"DATASET.ROOT"} if cfg.DATASET.NAME == "ImageFolder" else HARMLESS  # there, it says which
    changed = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key] and key not in harmless]
    if changed:
        others = f" (so differ {', '.join(changed[1:])})" if changed[1:] else ""
        raise SettingError(
            f"{cfg.OUTPUT_DIR} holds a run with {changed[0]} {before[changed[0]]}, this one has {now[changed[0]]}"
            f"{others}: choose another --output-dir, or delete that folder"
        )


def flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}; make room, or permit it", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def results(cfg: CfgNode, trainer, epochs: int) -> dict:
    """What results.json says of a finished run; figures that were not measured are null."""
    measured = getattr(trainer, "test_results", None) or {}
    device, settings = trainer.device, flatten(cfg)
    return {
        **{key: settings[setting] for key, setting in RECORDED.items()},
        "split": getattr(trainer, "test_split", cfg.TEST.SPLIT),
        "accuracy": measured.get("accuracy"),
        "error_rate": measured.get("error_rate"),
        "macro_f1": measured.get("macro_f1"),
        "n_test": getattr(trainer, "n_test", None),
        "epochs": epochs,
        "train_seconds": getattr(trainer, "train_seconds", None),
        "test_seconds": getattr(trainer, "test_seconds", None),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "open_clip": open_clip.__version__,
        },
    }


def learns(trainer) -> bool:
    """Whether there is anything to train: zero-shot CLIP has nothing."""
    return bool(trainer.get_model_names())


def prepare(args: argparse.Namespace, cfg: CfgNode):
    """The trainer, or an error that leaves no output folder behind."""
    for option, name in (("--trainer", cfg.TRAINER.NAME), ("--dataset-config-file", cfg.DATASET.NAME)):
        if not name:
            raise SettingError(f"{option} is missing: see python train.py --help")
    folder = Path(cfg.OUTPUT_DIR)
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]  # what this run makes
    try:
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
        try:
            setup_logger(cfg.OUTPUT_DIR)
        except OSError as error:
            raise SettingError(
                f"cannot write to the output folder {folder} ({error.strerror}): choose another --output-dir"
            ) from None
        if torch.cuda.is_available() and cfg.USE_CUDA:
            torch.backends.cudnn.benchmark = True
        print("Arguments:", *(f"  {key}: {value}" for key, value in sorted(vars(args).items())), sep="\n")
        print(f"Configuration:\n{cfg}\nEnvironment:\n{collect_env_info()}\n")
        trainer = build_trainer(cfg)
        if args.eval_only:
            if not args.model_dir and learns(trainer) and not cfg.MODEL.INIT_WEIGHTS:
                raise SettingError(f"--eval-only needs --model-dir, the output folder of a run of {cfg.TRAINER.NAME}")
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        elif learns(trainer) and getattr(trainer.dm.dataset, "test_only", False):
            print(f"{cfg.DATASET.NAME} has test images only: learning on them is a rehearsal, its accuracy no result")
        write_whole(folder / "config.yaml", cfg.dump())
        if not args.no_train:
            (folder / "results.json").unlink(missing_ok=True)
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # not empty: another run has begun there meanwhile
                for parent in fresh[1:]:
                    parent.rmdir()
        raise
    return trainer


def main(argv: list[str] | None = None) -> None:
    # How many workers there are is part of what a seed means, so a small machine gets as many as a large one.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    args = parse_arguments(argv)
    cfg = setup_cfg(args)
    finished = args.skip_finished and Path(cfg.OUTPUT_DIR, "results.json").is_file()
    check_settings(cfg, finished)
    if finished:
        print(f"Already done (delete {cfg.OUTPUT_DIR} to run it again)")
        return
    trainer = prepare(args, cfg)
    if args.eval_only:
        started = time.time()
        trainer.test()
        trainer.test_seconds = time.time() - started
    elif not args.no_train:
        trainer.train()
    else:
        return
    trained = cfg.OPTIM.MAX_EPOCH if learns(trainer) else 0
    epochs = getattr(trainer, "loaded_epoch", args.load_epoch) if args.eval_only else trained
    write_whole(Path(cfg.OUTPUT_DIR, "results.json"), json.dumps(results(cfg, trainer, epochs), indent=1) + "\n")


def run(main: Callable[[], None], resumption: str = "from the last whole epoch") -> None:
    """Run a program so that what its user can mend is one line and exit status 2, and Ctrl-C a clean end.

    Args:
        main: the program.
        resumption: from where the same command goes on after Ctrl-C.
    """
    own, stopped = os.getpid(), False

    def stop(number, frame):
        nonlocal stopped
        if os.getpid() != own:  # a worker of the data loader, which inherits this handler
            os._exit(0)
        stopped = True
        # A signal to all processes of a job ends the data loader's workers too: torch would raise at their end, and
        # what destructors make of an interrupt is of no interest.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        sys.unraisablehook = lambda unraisable: None
        signal.alarm(2)  # once more, should a destructor swallow what is raised now
        raise KeyboardInterrupt

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter, and file names may be no text
    signal.signal(signal.SIGALRM, stop)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGTERM is Slurm's way of saying that time is up
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and background jobs have it
            signal.signal(number, stop)
    try:
        main()
    except BaseException as error:
        if stopped:  # whatever else came of it first, such as workers that ended too early
            print(f"\nInterrupted: the same command goes on {resumption}", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, torch.OutOfMemoryError):
            error = SettingError("the GPU's memory is full: lower DATALOADER.{TRAIN_X,TEST}.BATCH_SIZE")
        if not isinstance(error, OSError | FloatingPointError) and not getattr(error, "one_line", False):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    run(main)
