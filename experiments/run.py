"""One run: train or test one method on one dataset."""

import gc
import os
import sys
import time
import warnings
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from yacs.config import CfgNode

import trainers
from clip import current_ranks
from clip.backbone import check_backbone
from common.errors import UsageError, closest
from common.nearest import check_folder
from datasets import title
from trainers.base.checkpoints import find_checkpoint
from trainers.base.data_use import Choice, check_choices, epoch_choice, in_words, on_test_images
from trainers.base.ranks import split

from .arguments import parse_arguments, per_seed
from .configuration import changed_settings, setup_cfg
from .early import check_early
from .environment import environment
from .lock import locked
from .output_folder import CONFIG, OutputFolder, check_same_settings, output_folder, restored_stdout
from .ranks import check_agreement
from .results import FILE as RESULTS
from .results import SELECTED, describe, read_results, write_results
from .trackers import check_trackers, reporting


def main(argv: list[str] | None = None) -> None:
    """Arguments -> configuration -> trainer -> results.json, which is written last."""
    args = parse_arguments(argv)
    for each in per_seed(args):
        check_early(each)
    train_and_test(args)


def train_and_test(args: Namespace, wait: bool = False) -> None:
    """`main` with its arguments parsed: the runs of all its seeds, one after another.

    The first run that fails ends the command. With several seeds, the settings and folders of all runs are checked
    before the first run starts.

    Args:
        args: of the command line.
        wait: wait for another run in the same output folder, instead of raising UsageError.
    """
    runs = per_seed(args)
    if len(runs) > 1:
        for each in runs:
            cfg = setup_cfg(each)
            check_same_settings(cfg, is_finished(each, cfg))
            check_arguments(each, cfg)
    for number, each in enumerate(runs):
        if number:
            gc.collect()  # the memory of the run before: a trainer may have reference cycles
            each.began = time.monotonic()
        execute(each, wait)


def execute(args: Namespace, wait: bool) -> None:
    """The run of one seed. Of several ranks the first one claims the output folder, writes and prints."""
    # How many workers there are is part of what a seed means, so a small machine gets as many as a large one.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    ranks, cfg = current_ranks(), setup_cfg(args)
    path = Path(cfg.OUTPUT_DIR)
    if not is_finished(args, cfg):
        check_arguments(args, cfg)
    with locked(path, wait) if ranks.first else nullcontext(), restored_stdout():
        if ranks.from_first(lambda: already_done(args, cfg)):
            return
        if args.quiet:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the log takes its place, `restored_stdout` ends it
        with output_folder(path) if ranks.first else nullcontext() as folder:
            trainer, choices = start(args, cfg, folder)
        trainer.time_began = args.began
        if not args.no_train:
            with reporting(args.report_to if ranks.first else [], cfg, trainer):
                epochs = run(args, cfg, trainer)
                if ranks.first:
                    write_results(cfg, trainer, *epochs, choices)
    if args.quiet and (found := read_results(path)):
        print(describe(found))


def already_done(args: Namespace, cfg: CfgNode) -> bool:
    """Whether there is nothing to do, as --skip-finished asks for.

    Raises:
        UsageError: the output folder holds a run with other settings.
    """
    finished = is_finished(args, cfg)
    check_same_settings(cfg, finished)
    if finished:
        print(f"Already done (delete {cfg.OUTPUT_DIR} to run it again)")
    return finished


def is_finished(args: Namespace, cfg: CfgNode) -> bool:
    """Whether the output folder has results, and the run is to be skipped then."""
    return args.skip_finished and Path(cfg.OUTPUT_DIR, RESULTS).is_file()


def run(args: Namespace, cfg: CfgNode, trainer) -> tuple[int | None, int | None]:
    """Train and test, or test alone.

    Returns:
        the number of epochs that were trained (of an evaluation: behind the prompts that it loaded), and the epoch that
        was tested; None if it is not known, or nothing was tested.
    """
    if args.eval_only:
        started = time.monotonic()
        trainer.test()
        trainer.test_seconds = time.monotonic() - started
        loaded = getattr(trainer, "loaded_epoch", args.load_epoch)
        return loaded, loaded
    trainer.train()
    if not is_trainable(trainer):
        return 0, 0
    epochs = cfg.OPTIM.MAX_EPOCH
    if cfg.TEST.NO_TEST:
        return epochs, None
    return epochs, getattr(trainer, "loaded_epoch", None) if cfg.TEST.FINAL_MODEL == "best_val" else epochs


def check_arguments(args: Namespace, cfg: CfgNode) -> None:
    """Check what takes no time, before anything that does: names, the weight file, and the prompts to test or resume.

    Raises:
        UsageError: something is missing or unknown.
    """
    given = {
        "--trainer": cfg.TRAINER.NAME,
        "--dataset-config-file": cfg.DATASET.NAME,
        "--root": cfg.DATASET.ROOT,
        "--output-dir": cfg.OUTPUT_DIR,
        "--config-file": args.config_file or args.opts,  # all of its keys may be given as pairs
    }
    for option, value in given.items():
        if not value:
            raise UsageError(f"{option} is missing", "see python train.py --help")
    if cfg.TRAINER.NAME in trainers.methods() and not cfg.MODEL.BACKBONE.NAME:
        raise UsageError("MODEL.BACKBONE.NAME is missing", "name the backbone in the YAML file or by --backbone")
    for kind, name, registry in (
        ("trainer", cfg.TRAINER.NAME, TRAINER_REGISTRY),
        ("dataset", cfg.DATASET.NAME, DATASET_REGISTRY),
    ):
        if name not in (known := registry.registered_names()):
            near = f"did you mean {closest(name, known)}?" if closest(name, known) else "check its name"
            raise UsageError(f'there is no {kind} "{name}" (there are: {", ".join(sorted(known))})', near)
    method = trainers.methods().get(cfg.TRAINER.NAME)
    if method:
        check_backbone(cfg.MODEL.BACKBONE.NAME)
    if method and args.eval_only and args.model_dir and method.learns:
        find_checkpoint(args.model_dir, method.saved_as, args.load_epoch, cfg.TRAINER.NAME)
    if cfg.RESUME:
        check_folder(Path(cfg.RESUME), "there is no folder", "check --resume")
    check_trackers(args.report_to)


def start(args: Namespace, cfg: CfgNode, folder: OutputFolder | None) -> tuple[Any, list[Choice] | None]:
    """Build the trainer, ready to train or to test, with its log and config.yaml in the folder.

    Args:
        args, cfg: of the run.
        folder: None for a rank that writes nothing.

    Returns:
        the trainer, and what `choices_of` says of it.
    """
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if folder:
        folder.start_log()
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    if folder and cfg.VERBOSE:
        folder.log(
            "Arguments:",
            *(f"  {key}: {value}" for key, value in sorted(vars(args).items()) if key != "began"),
            f"Configuration:\n{cfg}\n\nEnvironment:",
            *(f"  {key}: {value}" for key, value in environment().items()),
        )
    print_changes(args, cfg)
    if cfg.BY_DATASET:
        values = ", ".join(f"{key} {value}" for key, value in cfg.BY_DATASET.items())
        print(f"The YAML file sets for {title(cfg)} (BY_DATASET): {values}")
    trainer = build_trainer(cfg)
    split(trainer, current_ranks())
    if args.eval_only:
        if not args.model_dir and is_trainable(trainer) and not cfg.MODEL.INIT_WEIGHTS:
            raise UsageError(f"--eval-only needs --model-dir, the output folder of a run of {cfg.TRAINER.NAME}")
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif is_trainable(trainer) and getattr(trainer.dm.dataset, "test_only", False):
        print(f"{title(cfg)} has only test images: training on them is a rehearsal, not a result")
    check_agreement(args, cfg, trainer)
    choices = choices_of(args, cfg, trainer)
    if selecting := on_test_images(choices):
        print(f"{SELECTED}: {'; '.join(map(in_words, selecting))} (the results are marked)")
    if folder:
        folder.write_config(cfg)
        if not args.no_train:
            (folder.path / RESULTS).unlink(missing_ok=True)
    return trainer, choices


def choices_of(args: Namespace, cfg: CfgNode, trainer: Any) -> list[Choice] | None:
    """What was, or will be, chosen on images for the prompts that a run tests; None if their checkpoint does not say.

    Raises:
        UsageError: this run would choose on test images, and TEST.SELECT_ON_TEST is False.
    """
    inherited = getattr(trainer, "inherited_choices", None if args.eval_only else [])
    if args.eval_only or not is_trainable(trainer):
        return inherited
    if isinstance(trainer, trainers.PromptTrainer):
        own = trainer.choices
    else:  # a trainer of another project
        own = epoch_choice(cfg, title(cfg), trainer.dm.dataset)
    if not cfg.TEST.SELECT_ON_TEST:
        check_choices(own)
    return [*(inherited or []), *own]


def print_changes(args: Namespace, cfg: CfgNode) -> None:
    """A table of the settings that the YAML files do not have."""
    changes = changed_settings(args, cfg)
    width = max(map(len, changes), default=0)
    print(f"{cfg.TRAINER.NAME} on {title(cfg)}. Settings beside {args.config_file or 'the defaults'}:")
    for key, (before, now) in changes.items():
        print(f"  {key:{width}}  {now}" + (f"  (was {before})" if before not in ("", None, ()) else ""))
    print(f"All settings: {Path(cfg.OUTPUT_DIR, CONFIG)}")


def is_trainable(trainer) -> bool:
    """Whether there is anything to train: zero-shot CLIP has nothing."""
    return bool(trainer.get_model_names())
