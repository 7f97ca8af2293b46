"""One run: train or test one method on one dataset."""

import sys
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

import trainers
from common.errors import UsageError
from common.files import RUN_CONFIG_FILE
from common.names import title
from measures.results import chance_hint, checked_summary, next_step, summary_line

from . import calibrating, ood, open_world
from .config import RunSpec
from .folder import OutputFolder
from .predictions import SavedPredictions, SeenByRun
from .results import Record, environment, is_trainable, unused_gpu
from .trackers import reporting


def train_and_test(spec: RunSpec, wait: bool = False) -> None:
    """One run in its output folder: training and test, or a test alone. results.json is written
    last.

    If `wait`, it waits for another run in the same output folder, instead of raising UsageError.
    """
    with OutputFolder.claim(spec, wait) as folder, ExitStack() as until_end:
        if folder.is_finished:
            print(already_done(spec, folder))
            return
        until_end.callback(
            setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark
        )
        with folder.start():
            print_settings(spec, folder)
            trainer = build(spec)
            observers = wanted_observers(spec, trainer)
            prepare(spec, trainer)
            # Before a test loads the best epoch, which names its images itself
            record = Record(spec, trainer)
            if spec.args.no_train:
                return
            if "wandb" in spec.args.report_to:
                until_end.enter_context(reporting(spec.cfg, trainer))
        if spec.args.eval_only or not is_trainable(trainer):
            folder.remove_results()
        else:
            trainer.on_start(folder.remove_results)
        if spec.args.eval_only:
            trainer.test()
        else:
            trainer.train()
        observed = dict(pair for observer in observers for pair in observer.finish().items())
        folder.finish(record.to_json(observed))
        lines = closing_lines(spec, folder, trainer)
        for line in lines:
            print(line)  # to the log; with --quiet to the log alone
    if spec.args.quiet and folder.results:
        print(summary_line(folder.results), *lines, sep="\n")


def already_done(spec: RunSpec, folder: OutputFolder) -> str:
    if spec.args.quiet and folder.results:
        return checked_summary(folder.path, folder.results)
    return f"Already done (delete {folder.path} to run it again)"


def is_learner(trainer: Any) -> bool:
    """Whether it is the trainer of a method of this project that learns."""
    return isinstance(trainer, trainers.MethodTrainer) and trainer.method.learns


def closing_lines(spec: RunSpec, folder: OutputFolder, trainer: Any) -> list[str]:
    """What to do with the results, if there are some."""
    if not folder.results:
        return []
    hint = chance_hint(folder.results.accuracy, trainer.dm.num_classes)
    if not is_learner(trainer):
        return hint
    return [next_step(spec.args.model_dir or folder.path, trainer.method.plugin_file), *hint]


def wanted_observers(spec: RunSpec, trainer: Any) -> list[Any]:
    """What this run does besides training and test."""
    wanted = {
        ood.DetectionObserver: bool(spec.cfg.TEST.OOD),
        open_world.OpenWorld: spec.args.eval_only and open_world.is_union(spec),
        SavedPredictions: True,
        calibrating.Calibrated: spec.cfg.TEST.CALIBRATE,
        SeenByRun: is_learner(trainer) and SeenByRun.is_wanted(spec, trainer),
    }
    return [observer(spec, trainer) for observer, is_wanted in wanted.items() if is_wanted]


def print_settings(spec: RunSpec, folder: OutputFolder) -> None:
    """All settings to log.txt alone; to the terminal those that differ from the YAML files."""
    cfg = spec.cfg
    if cfg.VERBOSE:
        # Dassl's logger, with the file as an attribute (so it is in the published one)
        log: Any = sys.stdout
        log.file.write(f"Arguments:\n{lines_of(dict(sorted(vars(spec.args).items())))}")
        log.file.write(f"Configuration:\n{cfg}\n\nEnvironment:\n{lines_of(environment())}")
    defaults = spec.args.config_file or "the defaults"
    print(f"{cfg.TRAINER.NAME} on {title(cfg)}. Settings that differ from {defaults}:")
    width = max(map(len, spec.changed), default=0)
    for key, (before, now) in spec.changed.items():
        print(f"  {key:{width}}  {now}", end="")
        print(f"  (was {before})" if before not in ("", None, ()) else "")
    print(f"All settings: {folder.path / RUN_CONFIG_FILE}")
    for line in spec.notes:
        print(line)
    if cfg.BY_DATASET:
        values = ", ".join(f"{key} {value}" for key, value in cfg.BY_DATASET.items())
        print(f"The YAML file sets for {title(cfg)} (BY_DATASET): {values}")


def lines_of(facts: dict[str, Any]) -> str:
    return "".join(f"  {key}: {value}\n" for key, value in facts.items())


def build(spec: RunSpec) -> Any:
    """The trainer on the device of the run, after seeding all random generators."""
    cfg = spec.cfg
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    elif cfg.USE_CUDA and (why := unused_gpu()):
        hint = "docs/install.md; USE_CUDA False hides this"
        print(f"Computing on the CPU, although there is an NVIDIA GPU: {why} ({hint})")
    with warnings.catch_warnings():
        # Augmentation depends on the number of workers: a seed gives the same images on a machine
        # with few cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
        return build_trainer(cfg)


def prepare(spec: RunSpec, trainer: Any) -> None:
    """Load the prompts to test, or check that the training can start."""
    args = spec.args
    cfg = spec.cfg
    if args.eval_only:
        if not args.model_dir and is_trainable(trainer) and not cfg.MODEL.INIT_WEIGHTS:
            raise UsageError(
                f"--eval-only needs --model-dir, the output folder of a run of {cfg.TRAINER.NAME}"
            )
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif is_trainable(trainer):
        if isinstance(trainer, trainers.MethodTrainer):
            trainer.method.check_training()
        if getattr(trainer.dm.dataset, "test_only", False):
            print(
                f"{title(cfg)} has only test images: training on them is a rehearsal, not a result"
            )
