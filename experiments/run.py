"""One run: train or test one method on one dataset."""

import warnings
from argparse import Namespace
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from yacs.config import CfgNode

import trainers
from clip.backbone import weight_file
from common.errors import UsageError, choose
from common.files import check_folder
from common.results import CONFIG
from datasets import title
from trainers.base.data_use import Choice, check_choices, epoch_choice, in_words, on_test_images

from . import ood, predictions
from .arguments import check_given
from .configuration import (
    changed_settings,
    read_chosen,
    read_files,
    setup_cfg,
    unread_keys,
    unread_settings,
    weights_of,
)
from .data_card import data_use, learned_from, note_test, origins
from .environment import environment, unused_gpu
from .output_folder import OutputFolder, claimed
from .results import FILE as RESULTS
from .results import SELECTED, describe, described, read_results, results_of
from .same_run import check_same_prompts, check_same_settings
from .trackers import check_trackers, reporting


def train_and_test(args: Namespace, wait: bool = False) -> None:
    """Arguments -> configuration -> output folder -> trainer -> training and test -> results.json, written last.

    If `wait`, it waits for another run in the same output folder, instead of raising UsageError.
    """
    files = read_files(args)
    cfg = setup_cfg(args, files)
    if skipped(args, cfg):
        return
    with claimed(Path(cfg.OUTPUT_DIR), wait) as folder, ExitStack() as until_end:
        if skipped(args, cfg):  # another process may have finished it meanwhile
            return
        with folder.start(cfg, args.quiet):
            log_settings(args, files, cfg, folder)
            trainer = build(args, cfg)
            choices, settings = choices_of(args, cfg, trainer), origins(args, cfg)
            fit = learned_from(args, cfg, trainer)  # before a test loads the best epoch, which names its images itself
            others = ood.read_others(cfg, trainer)
            if args.no_train:
                return
            until_end.enter_context(reporting(args.report_to, cfg, trainer))
        folder.remove(RESULTS, predictions.FILE)
        epochs, tested_epoch = execute(args, cfg, trainer)
        detected = ood.evaluate(cfg, trainer, others)
        if arrays := predictions.of_test(cfg, trainer):
            predictions.save(folder.path / predictions.FILE, arrays)
        card = data_use(cfg, trainer, fit, choices, settings)
        folder.write(RESULTS, results_of(cfg, trainer, epochs, tested_epoch, card, detected))
        folder.remove_partial_test()
    if args.quiet and (found := read_results(folder.path)):
        print(describe(found))


def skipped(args: Namespace, cfg: CfgNode) -> bool:
    """Whether the run is already done; printed, too."""
    done = already_done(args, cfg)
    if done:
        folder = Path(cfg.OUTPUT_DIR)
        found = read_results(folder)
        line = f"Already done (delete {folder} to run it again)"
        print(described(folder, found) if args.quiet and found else line)
        if found and "weights_sha256" not in found:
            print(f"{folder / RESULTS} does not say which weights {cfg.MODEL.BACKBONE.NAME} had")
    return done


def already_done(args: Namespace, cfg: CfgNode) -> bool:
    """Whether the run is finished and --skip-finished is given; if not, check what takes no time.

    Raises:
        UsageError: an argument is missing, or the trainer, the dataset, the backbone, a package or the prompts to test
            do not exist, or the output folder holds a run with other settings or a test of other prompts.
    """
    finished = args.skip_finished and Path(cfg.OUTPUT_DIR, RESULTS).is_file()
    check_same_settings(cfg, finished)
    if finished:
        folder = Path(cfg.OUTPUT_DIR)
        if args.model_dir and (results := read_results(folder)):
            check_same_prompts(folder, results, args.model_dir, args.load_epoch)
        return True
    check_given(args, cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.OUTPUT_DIR)
    choose(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "trainer")
    choose(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "dataset")
    if method := trainers.methods().get(cfg.TRAINER.NAME):
        if not cfg.MODEL.BACKBONE.NAME:
            raise UsageError("MODEL.BACKBONE.NAME is missing", "name the backbone in the YAML file or by --backbone")
        weight_file(cfg.MODEL.BACKBONE.NAME)
        weights = weights_of(cfg)
        cfg.defrost()
        cfg.MODEL.BACKBONE.SHA256 = weights
        cfg.freeze()
        if args.eval_only and args.model_dir and method.learns:
            method.checkpoint_in(args.model_dir, args.load_epoch)
    ood.check_settings(cfg)
    if cfg.RESUME:
        check_folder(Path(cfg.RESUME), "there is no folder", "check --resume")
        begun = any(any(Path(cfg.RESUME).glob(name)) for name in (CONFIG, "*/checkpoint", "*/model*"))
        own = Path(cfg.RESUME).resolve() == Path(cfg.OUTPUT_DIR).resolve()  # which a script may have made for this run
        if not (begun or own):
            remedy = "give the output folder of a run by --resume, or leave it out"
            raise UsageError(f"{cfg.RESUME} holds no run", remedy)
        check_same_settings(cfg, False, cfg.RESUME)
    check_trackers(args.report_to)
    return False


def log_settings(args: Namespace, files: CfgNode, cfg: CfgNode, folder: OutputFolder) -> None:
    """All settings to the log; to the terminal those that differ from the YAML files."""
    if cfg.VERBOSE:
        arguments = "".join(f"  {key}: {value}\n" for key, value in sorted(vars(args).items()))
        machine = "".join(f"  {key}: {value}\n" for key, value in environment().items())
        folder.log(f"Arguments:\n{arguments}Configuration:\n{cfg}\n\nEnvironment:\n{machine}")
    changes = changed_settings(files, cfg)
    width = max(map(len, changes), default=0)
    print(f"{cfg.TRAINER.NAME} on {title(cfg)}. Settings that differ from {args.config_file or 'the defaults'}:")
    for key, (before, now) in changes.items():
        print(f"  {key:{width}}  {now}" + (f"  (was {before})" if before not in ("", None, ()) else ""))
    print(f"All settings: {Path(cfg.OUTPUT_DIR, CONFIG)}")
    if unread := unread_settings(args.config_file, cfg):
        print(unread)
    if keys := unread_keys(args.opts[::2], cfg):
        print(f"{cfg.TRAINER.NAME} does not read {', '.join(keys)}")
    if cfg.BY_DATASET:
        values = ", ".join(f"{key} {value}" for key, value in cfg.BY_DATASET.items())
        print(f"The YAML file sets for {title(cfg)} (BY_DATASET): {values}")


def build(args: Namespace, cfg: CfgNode) -> Any:
    """The trainer, ready to train, or with its prompts loaded for a test."""
    # Augmentation depends on the number of workers: a seed must give the same images on a machine with few cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    elif cfg.USE_CUDA and (why := unused_gpu()):
        hint = "docs/install.md; USE_CUDA False hides this"
        print(f"Computing on the CPU, although there is an NVIDIA GPU: {why} ({hint})")
    trainer = build_trainer(cfg)
    if cfg.TEST.SAVE_LOGITS:
        predictions.check_logits(len(trainer.test_loader.dataset), trainer.dm.num_classes)
    record = partial(note_test, cfg, trainer)
    trainer.evaluate_by(lambda evaluator: predictions.Recorder(evaluator, cfg.TEST.SAVE_LOGITS, record))
    if args.eval_only:
        if not args.model_dir and is_trainable(trainer) and not cfg.MODEL.INIT_WEIGHTS:
            raise UsageError(f"--eval-only needs --model-dir, the output folder of a run of {cfg.TRAINER.NAME}")
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif is_trainable(trainer):
        if isinstance(trainer, trainers.PromptTrainer):
            trainer.check_training()
        if getattr(trainer.dm.dataset, "test_only", False):
            print(f"{title(cfg)} has only test images: training on them is a rehearsal, not a result")
    return trainer


def choices_of(args: Namespace, cfg: CfgNode, trainer: Any) -> list[Choice] | None:
    """The past and future choices on images for the prompts that a run tests; None if their checkpoint does not say.

    Raises UsageError if this run would choose on test images, and TEST.SELECT_ON_TEST is False.
    """
    choices = getattr(trainer, "inherited_choices", None if args.eval_only else [])
    here, training = isinstance(trainer, trainers.PromptTrainer), not args.eval_only and is_trainable(trainer)
    own = [choice for choice in read_chosen(args.chosen).choices if choice not in (choices or ())]
    if own and here:
        trainer.inherit(own)
    if training or (here and not trainer.learns):
        own += trainer.choices if here else epoch_choice(cfg, title(cfg), trainer.dm.dataset)
    if not cfg.TEST.SELECT_ON_TEST:
        check_choices(own)
    choices = [*(choices or []), *own] if own else choices
    if selecting := on_test_images(choices):
        print(f"{SELECTED}: {'; '.join(map(in_words, selecting))} (the results are marked)")
    return choices


def execute(args: Namespace, cfg: CfgNode, trainer: Any) -> tuple[int | None, int | None]:
    """Train and test, or test alone.

    Returns:
        the number of epochs that were trained (of an evaluation: behind the prompts that it loaded), and the epoch that
        was tested; None if it is not known, or nothing was tested.
    """
    if args.eval_only:
        trainer.test()
        asked = None if isinstance(trainer, trainers.PromptTrainer) else args.load_epoch  # ours know what they loaded
        loaded = getattr(trainer, "loaded_epoch", asked)
        return loaded, loaded
    trainer.train()
    if not is_trainable(trainer):
        return 0, 0
    epochs = cfg.OPTIM.MAX_EPOCH
    if cfg.TEST.NO_TEST:
        return epochs, None
    return epochs, getattr(trainer, "loaded_epoch", None) if cfg.TEST.FINAL_MODEL == "best_val" else epochs


def is_trainable(trainer: Any) -> bool:
    """Whether there is anything to train: zero-shot CLIP has nothing."""
    return bool(trainer.get_model_names())
