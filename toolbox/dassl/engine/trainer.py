"""Trainers: the loop over epochs and batches, its display, evaluation and checkpoints."""

import datetime
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from dassl.data import DataManager
from dassl.data.data_manager import SteadyLoader
from dassl.engine.base import TrainerBase
from dassl.evaluation import build_evaluator
from dassl.utils import AverageMeter, MetricMeter, Registry, UsageError, lazy_names
from dassl.utils.checkpoint import newest_checkpoint, remove_stale
from dassl.utils.logger import on_terminal, print_detail, print_on_terminal
from tqdm import tqdm

from common.files import write_bytes

__all__ = ["AverageMeter", "MetricMeter", "SimpleTrainer", "TrainerBase", "TrainerX"]
TRAINER_REGISTRY = Registry("TRAINER")
# Some projects import it from here
__getattr__, _ = lazy_names("torch.utils", {"tensorboard": "SummaryWriter"})


def build_trainer(cfg):
    """Build the registered trainer `cfg.TRAINER.NAME`; UsageError if there is none.

    What is registered may have a `build_trainer(cfg)` of its own, as this project's methods do.
    """
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    registered = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    return getattr(registered, "build_trainer", registered)(cfg)


class SimpleTrainer(TrainerBase):
    """Data, one model, evaluation and checkpoints; subclasses define the training step.

    Each epoch ends with a checkpoint. An interrupted run resumes after its last complete epoch; on
    a CPU it is bit-identical to an uninterrupted one. A checkpoint between those of
    TRAIN.CHECKPOINT_FREQ is deleted after the next one is written.

    Attributes:
        persistent_workers (bool): class attribute; whether the workers of training loaders live
            until training ends. That is faster. What a trainer changes in their dataset after the
            first epoch has no effect then, and a second iterator of a loader ends the first one.
        cfg, device, output_dir, epoch (from 0), start_epoch, max_epoch, batch_idx, num_batches: the
        run.
        dm, train_loader_x, train_loader_u, val_loader, test_loader, num_classes,
            num_source_domains, lab2cname: data.
        evaluator, best_result: evaluation.
        observers (list): objects that see each test besides the evaluator, and have its methods
            `reset()` and `process(logits, labels)`.
        test_results (dict), test_split (str), n_test (int), test_seconds (float): results of the
        last call of `test`.
        train_seconds (float): time in the training loop, before resumptions included, the final
            test excluded.
    """

    persistent_workers = False
    train_loader_x = train_loader_u = val_loader = (
        None  # a trainer's own `build_data_loader` may leave some out
    )

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.test_results = None
        self.test_split = None
        self.n_test = 0
        self.test_seconds = 0.0
        self.observers = []
        self._best = {}  # of the last epoch, if it is the best one so far: how to save it
        self.time_start = time.time()  # for published trainers, which subtract it from the time
        self._began = self._train_began = time.monotonic()
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg):
        """Hook: raise an error for a config that the trainer does not support."""

    def build_data_loader(self):
        """Build `self.dm`; its loaders and what it knows of the classes become attributes of the
        trainer.
        """
        self.dm = DataManager(self.cfg, persistent_workers=self.persistent_workers)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self):
        """Build the model, move it to the device and register it."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model()")

    def train(self):
        """Train from the first epoch, or resume after the last checkpoint, then test."""
        try:
            super().train(self.start_epoch, self.max_epoch)
        finally:  # also after an error, whose traceback keeps them
            self.stop_workers()

    def stop_workers(self):
        """End persistent workers."""
        for loader in (self.train_loader_x, self.train_loader_u):
            if isinstance(loader, SteadyLoader):
                loader.stop_workers()

    def before_train(self):
        # Perhaps by resuming the run in RESUME
        begun = all(map(newest_checkpoint, self._model_folders()))
        directory = self.cfg.OUTPUT_DIR if begun else self.cfg.RESUME or self.cfg.OUTPUT_DIR
        self.start_epoch = self.resume_model_if_exist(directory)
        if self.start_epoch > self.max_epoch:
            begun_at = self.start_epoch
            most = self.max_epoch
            fault = (
                f"the checkpoint in {directory} is of epoch {begun_at}, but OPTIM.MAX_EPOCH is "
                f"{most}"
            )
            raise UsageError(
                fault, "use the settings that it was trained with, or another OUTPUT_DIR"
            )
        if os.path.realpath(directory) != os.path.realpath(self.output_dir):
            self._transient_epochs = set()  # never delete files of another run
            best = [
                os.path.join(directory, name, "model-best.pth.tar")
                for name in self.get_model_names()
            ]
            if self.cfg.TEST.FINAL_MODEL == "best_val" and all(map(os.path.isfile, best)):
                for path, folder in zip(best, self._model_folders(), strict=True):
                    os.makedirs(folder, exist_ok=True)
                    write_bytes(Path(folder, "model-best.pth.tar"), Path(path).read_bytes())
            else:
                self.best_result = -math.inf  # of an epoch that this run could not deploy
        if begun:
            self._remove_stale(self.start_epoch)  # a run that was killed may not have done so
        self.init_writer(os.path.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()
        self._train_began = time.monotonic() - self.train_seconds

    def after_train(self):
        self.train_seconds = time.monotonic() - self._train_began
        self.stop_workers()
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        for folder in self._model_folders():
            print_on_terminal(f"Checkpoints: {folder}")
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.monotonic() - self._began))}")
        self.close_writer()

    def after_epoch(self):
        self.check_finite()
        self._best = {}
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            # Some evaluators return numpy's, which no checkpoint may hold
            val_result = float(self.test(split="val"))
            if val_result > self.best_result:
                self.best_result = val_result
                self._best = {"is_best": True, "val_result": val_result}
        self.train_seconds = time.monotonic() - self._train_began
        self._save_epoch()

    def _save_epoch(self):
        """Save the epoch, then delete the checkpoints that TRAIN.CHECKPOINT_FREQ does not keep."""
        number = self.epoch + 1
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if number < self.max_epoch and not (freq > 0 and number % freq == 0):
            self._transient_epochs.add(number)
        self.save_model(self.epoch, self.output_dir, **self._best)
        # Only after all models are saved: a run that is killed at any time then has one epoch with
        # all models.
        self._remove_stale(number)

    def _remove_stale(self, newest):
        """Delete the transient checkpoints of the epochs (from 1) before the newest, and unfinished
        files.
        """
        for folder in self._model_folders():
            remove_stale(folder, self._transient_epochs - {newest})
        self._transient_epochs &= {newest}

    def _model_folders(self):
        """The folders of checkpoints, one for each registered model."""
        return [os.path.join(self.output_dir, name) for name in self.get_model_names()]

    def evaluate_by(self, wrap):
        """Evaluate by `wrap(evaluator)`, which has the same methods, from now on."""
        self.evaluator = wrap(self.evaluator)

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate a split, "val" or "test"; by default TEST.SPLIT. Without validation data the
        test split is used.

        Returns the first result of the evaluator (accuracy in percent); `self.test_results` has all
        of them.
        """
        self.set_model_mode("eval")
        observers = [self.evaluator, *self.observers]
        for observer in observers:
            observer.reset()
        validates = (split or self.cfg.TEST.SPLIT) == "val" and self.val_loader is not None
        self.test_split = split = "val" if validates else "test"
        print(f"Evaluate on the *{split}* set")
        start = time.monotonic()
        self.n_test = 0
        data_loader = self.val_loader if validates else self.test_loader
        for output, label in test_bar(self.test_outputs(data_loader), split, data_loader):
            for observer in observers:
                observer.process(output, label)
            self.n_test += len(label)
        self.test_results = self.evaluator.evaluate()
        self.test_seconds = time.monotonic() - start
        for name, value in self.test_results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.test_results.values()))

    def test_outputs(self, loader):
        """Hook: yield the logits [batch, n_classes] and the labels [batch] of each batch of a test
        loader.
        """
        for batch in loader:
            input, label = self.parse_batch_test(batch)
            yield self.model_inference(input), label

    def model_inference(self, input):
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        return self.model(input)

    def parse_batch_test(self, batch):
        """A batch's images and labels, on the trainer's device."""
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(
            self.device, non_blocking=True
        )


class TrainerX(SimpleTrainer):
    """Trains on labelled data.

    Subclasses define `forward_backward(batch)`, which returns a dict of losses: numbers, or tensors
    of one element. Those on a GPU are read together every TRAIN.PRINT_FREQ steps.
    """

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        losses = MetricMeter()
        frequency = self.cfg.TRAIN.PRINT_FREQ
        unread = []
        display = EpochDisplay(self.epoch + 1, self.max_epoch, self.num_batches, frequency)
        with display.bar or nullcontext():
            end = time.monotonic()
            for batch_idx, batch in enumerate(self.train_loader_x):
                self.batch_idx = batch_idx
                data_seconds = time.monotonic() - end
                number = batch_idx + 1
                # Values on a GPU are read when they are shown, so that the CPU does not wait for it
                # in every step.
                logged = kept(self.forward_backward(batch))
                step = self.epoch * self.num_batches + batch_idx
                unread.append((step, logged))
                if number % frequency == 0 or number == self.num_batches or not on_gpu(logged):
                    self.log(unread, losses)
                    unread = []
                display.show(losses, self.get_current_lr(), data_seconds, time.monotonic() - end)
                self.write_scalar("train/lr", self.get_current_lr(), step)
                end = time.monotonic()

    def forward_backward(self, batch):
        """Hook: a training step. Raises UsageError for a trainer without one, such as zero-shot
        CLIP.
        """
        name = type(self).__name__
        raise UsageError(f"{name} does not train: call its test(), or define forward_backward")

    def log(self, steps, losses):
        """Add steps, (number, what `forward_backward` returned), to the epoch's MetricMeter; write
        it to TensorBoard. Raises FloatingPointError if a loss is not finite."""
        values = iter(
            self.read_together(value for _, logged in steps for value in on_gpu(logged).values())
        )
        for step, logged in steps:
            losses.update(logged and {**logged, **{name: next(values) for name in on_gpu(logged)}})
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)

    def parse_batch_train(self, batch):
        """A batch's images, labels and domains, on the trainer's device."""
        return tuple(
            batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain")
        )


def on_gpu(logged):
    """Of what `forward_backward` returned, the tensors on a GPU."""
    return {
        name: value for name, value in (logged or {}).items() if getattr(value, "is_cuda", False)
    }


def kept(logged):
    """What `forward_backward` returned, with copies of tensors on a GPU: a parameter changes until
    they are read, and the graph of a loss fills the memory.
    """
    copies = {name: value.detach().clone() for name, value in on_gpu(logged).items()}
    return logged and {**logged, **copies}


class EpochDisplay:
    """The bar of an epoch, on a terminal only, and the published lines, which a terminal does not
    show.

    The log has a line for every `print_freq` batches; in a shorter epoch, for the last one. `epoch`
    counts from 1.
    """

    def __init__(self, epoch, max_epoch, num_batches, print_freq):
        self.epoch = epoch
        self.max_epoch = max_epoch
        self.num_batches = num_batches
        self.print_freq = print_freq
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self.bar = None
        if on_terminal():
            self.bar = tqdm(
                desc=f"epoch {epoch}/{max_epoch}",
                total=num_batches,
                leave=False,
                dynamic_ncols=True,
            )

    def show(self, losses, lr, data_seconds, seconds):
        """Show one more batch, which is in the MetricMeter `losses`; its data took `data_seconds`
        of its `seconds`.
        """
        self.data_time.update(data_seconds)
        self.batch_time.update(seconds)
        number = self.batch_time.count
        batches = (self.max_epoch - self.epoch + 1) * self.num_batches - number
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * batches))
        if number % self.print_freq == 0 or number == self.num_batches < self.print_freq:
            print_detail(f"{self.place()} {losses} lr {lr:.4e} eta {eta}")
        if self.bar is not None:
            self.show_bar(losses, lr, eta)

    def place(self):
        """The number of the batch, and its times."""
        batch = f"batch [{self.batch_time.count}/{self.num_batches}]"
        times = {"time": self.batch_time, "data": self.data_time}
        words = (f"{name} {meter.val:.3f} ({meter.avg:.3f})" for name, meter in times.items())
        return f"epoch [{self.epoch}/{self.max_epoch}] {batch} {' '.join(words)}"

    def show_bar(self, losses, lr, eta):
        means = " ".join(f"{name} {meter.avg:.4g}" for name, meter in [*losses.meters.items()][:2])
        self.bar.set_postfix_str(f"{means} lr {lr:.2e} left {eta}", refresh=False)
        self.bar.update()
        if self.batch_time.count == self.num_batches:
            took = datetime.timedelta(seconds=round(self.batch_time.sum))
            self.bar.close()
            epoch = f"epoch {self.epoch}/{self.max_epoch}"
            print_on_terminal(f"{epoch}: {means} lr {lr:.2e}, {took}, left {eta}")


def test_bar(outputs, split, loader):
    """The outputs for a loader's batches; on a terminal with a bar that names the split ("test" or
    "val").
    """
    leave = split == "test"  # validation has a bar for every epoch
    unit = "image" if getattr(loader, "batch_size", None) == 1 else "batch"
    options = {"leave": leave, "unit": unit, "dynamic_ncols": True, "disable": not on_terminal()}
    return tqdm(outputs, f"{split} set", len(loader), **options)
