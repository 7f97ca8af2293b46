"""The part of a trainer that handles models, optimisers and checkpoints, but no data."""

import math
import os
from collections import OrderedDict

import torch
from dassl.engine.run_state import rng_state, set_rng_state
from dassl.utils import UsageError, save_checkpoint, tolist_if_not
from dassl.utils.checkpoint import LOAD_ERRORS, load_newest, load_training_state, restore


class TrainerBase:
    """Registered models and the frame of a training loop; subclasses fill in the hooks."""

    divergence_remedy = "lower OPTIM.LR"  # the advice if a loss or a parameter is not finite
    # A GradScaler of a trainer in mixed precision, which sets it in `build_model`; checkpoints keep
    # it
    scaler = None
    loaded_epoch: (
        int  # the epoch (from 1) of the weights that `load_model` has loaded; unset before
    )

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = self._log_dir = None
        self._start_actions = []
        self.best_result = -math.inf  # of a validation so far
        self.train_seconds = 0.0  # before a resumption, too
        self._saved_epoch = None  # epoch (from 1) of the newest checkpoint
        self._transient_epochs = set()  # epochs whose checkpoints exist only to resume from
        self._unchecked = []  # numbers of batches, and their losses on a GPU

    # Models

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Register a model, so that the trainer saves, loads, resumes and steps it and sets its
        mode.

        Args:
            name (str): folder of its checkpoints in the output directory; ValueError if it is
                taken.
            model (nn.Module): the model.
            optim (Optimizer): its optimiser, None if it is not trained.
            sched (LRScheduler): its learning rate scheduler, which `update_lr` steps.
        """
        if name in self._models:
            raise ValueError(
                f'a model named "{name}" is already registered; give each model its own name'
            )
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """Registered names as a list: `names` (one or a list) after checking them, or all for
        None.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(
                    f'no model named "{name}" is registered; registered are {list(self._models)}'
                )
        return names

    def _registered(self, parts, names):
        """Those of `self._models`, `self._optims` or `self._scheds` that exist."""
        return [parts[name] for name in self.get_model_names(names) if parts[name] is not None]

    def set_model_mode(self, mode="train", names=None):
        """Put models in "train" mode, or in "test" (also "eval") mode."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f'model mode must be "train", "test" or "eval", got "{mode}"')
        for model in self._registered(self._models, names):
            model.train(mode == "train")

    def update_lr(self, names=None):
        """Step the learning rate schedulers of these models."""
        for scheduler in self._registered(self._scheds, names):
            scheduler.step()

    def get_current_lr(self, names=None):
        """The learning rate of the first of these models' first parameter group."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # Steps

    def model_zero_grad(self, names=None):
        for optimizer in self._registered(self._optims, names):
            optimizer.zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for optimizer in self._registered(self._optims, names):
            optimizer.step()

    def model_backward_and_update(self, loss, names=None):
        """One optimiser step of these models on a scalar loss."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # Losses and parameters that are not finite end training before a checkpoint is written

    def detect_anomaly(self, loss):
        """Raise FloatingPointError unless the loss is finite; for a loss on a GPU `read_together`
        does it later.
        """
        batch = getattr(self, "batch_idx", 0) + 1
        if loss.is_cuda:
            self._unchecked.append((batch, loss.detach().sum()))
        elif not torch.isfinite(loss).all():
            self._check_loss(loss.sum().item(), batch)

    def read_together(self, tensors=()):
        """The values of one-element tensors, a list of float, with one wait for each device. Raises
        FloatingPointError if a loss on a GPU that `detect_anomaly` was given since the last call is
        not finite.
        """
        unchecked = self._unchecked
        self._unchecked = []
        scalars = [
            x.detach().float().reshape(()) for x in (*(loss for _, loss in unchecked), *tensors)
        ]
        by_device = {}
        for scalar in scalars:
            by_device.setdefault(scalar.device, []).append(scalar)
        read = {
            device: iter(torch.stack(of_device).tolist()) for device, of_device in by_device.items()
        }
        values = [next(read[scalar.device]) for scalar in scalars]
        for (batch, _), loss in zip(unchecked, values, strict=False):
            self._check_loss(loss, batch)
        return values[len(unchecked) :]

    def check_finite(self):
        """Raise FloatingPointError if a loss, or a trainable parameter of a registered model, is
        not finite.
        """
        learned = {
            f"{name} of {model_name}": torch.isfinite(param).all()
            for model_name, model in self._models.items()
            for name, param in model.named_parameters()
            if param.requires_grad
        }
        for name, finite in zip(learned, self.read_together(learned.values()), strict=True):
            if not finite:
                self._raise_diverged(f"{name} is not finite")

    def _check_loss(self, loss, batch):
        if not math.isfinite(loss):
            self._raise_diverged(
                f"the loss is {'NaN' if math.isnan(loss) else 'infinite'}", f", batch {batch}"
            )

    def _raise_diverged(self, fault, batch=""):
        kept = f"; the checkpoint of epoch {self._saved_epoch} is kept" if self._saved_epoch else ""
        epoch = getattr(self, "epoch", 0) + 1
        raise FloatingPointError(f"{fault} at epoch {epoch}{batch}: {self.divergence_remedy}{kept}")

    # Checkpoints

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save all registered models by `save_checkpoint`, each under `directory/<its name>/`.

        `epoch` is the one just finished, from 0; the file's name counts from 1. The file has
        `val_result`, too. `is_best` also writes `model-best.pth.tar`; `model_name` replaces the
        name of the file.
        """
        self.read_together()  # a checkpoint of diverged training is not written
        common = {"epoch": epoch + 1, "val_result": val_result, "run": self.run_state()}
        common["metadata"] = self.checkpoint_metadata()
        for name in self.get_model_names():
            parts = {
                "state_dict": self._models[name],
                "optimizer": self._optims[name],
                "scheduler": self._scheds[name],
            }
            state = {
                key: None if part is None else part.state_dict() for key, part in parts.items()
            }
            save_checkpoint(
                state | common,
                os.path.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )
        self._saved_epoch = epoch + 1

    def checkpoint_metadata(self):
        """Hook: a dict of plain values that describes the method; `save_model` saves it under
        "metadata".
        """
        return {}

    def check_metadata(self, metadata):
        """Hook: raise an error if a run with this metadata in its checkpoint cannot be resumed."""

    def resume_model_if_exist(self, directory):
        """Load weights, optimisers, schedulers and random states from the newest checkpoint of an
        output directory.

        Returns the number of finished epochs, 0 if there is no checkpoint. Raises UsageError if the
        checkpoints are damaged or do not fit the models.
        """
        checkpoints = load_newest(directory, self.get_model_names())
        if checkpoints is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        first = next(iter(checkpoints.values()))
        metadata = first.get("metadata")
        self.check_metadata(metadata if isinstance(metadata, dict) else {})
        for name, checkpoint in checkpoints.items():
            parts = self._models[name], self._optims[name], self._scheds[name]
            restore(checkpoint, f"of {name} in {directory}", *parts)
        # The published toolbox saves none: the random generators keep their states
        if first.get("run") is not None:
            try:
                self.load_run_state(first["run"])
            except UsageError:  # of a subclass
                raise
            except LOAD_ERRORS as error:
                reason = " ".join(str(error).split())
                fault = f"the run state of the checkpoint is damaged ({reason})"
                raise UsageError(f"{fault}; use another epoch's") from error
        self._saved_epoch = first["epoch"]
        print(f"Previous epoch: {first['epoch']}")
        return first["epoch"]

    def run_state(self):
        """Hook: all that a resumed run needs except the models, a dict of plain values and tensors.

        A subclass with more state (such as a running average of weights) adds it, and reads it in
        `load_run_state`.
        """
        state = {
            "rng": rng_state(),
            "best_result": float(self.best_result),
            "train_seconds": self.train_seconds,
            "transient_epochs": sorted(self._transient_epochs),
        }
        return state if self.scaler is None else state | {"scaler": self.scaler.state_dict()}

    def load_run_state(self, state):
        """Restore the state that `run_state` returned."""
        set_rng_state(state["rng"])
        self.best_result = float(state["best_result"])
        self.train_seconds = float(state["train_seconds"])
        self._transient_epochs = set(state["transient_epochs"])
        # Files of these epochs are deleted
        if not all(type(epoch) is int for epoch in self._transient_epochs):
            raise ValueError("transient_epochs is not a list of epochs")
        if state.get("scaler") and self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    def load_model(self, directory, epoch=None):
        """Load the weights of all registered models from an output directory; if it is empty,
        nothing is loaded.

        They are those of `model.pth.tar-<epoch>`, by default of `model-best.pth.tar`;
        MissingFileError (a UsageError and a FileNotFoundError) if the file does not exist.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = os.path.join(
                directory, name, "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            )
            checkpoint = load_training_state(path)
            restore(checkpoint, path, self._models[name])
            self.loaded_epoch = checkpoint["epoch"]
            print(
                f"Load {path} to {name} (epoch={checkpoint['epoch']}, "
                f"val_result={checkpoint.get('val_result')})"
            )

    # TensorBoard

    def init_writer(self, log_dir):
        """Write TensorBoard's files to a folder from now on, unless they are written already."""
        if self._log_dir is None:
            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._log_dir = log_dir

    def close_writer(self):
        """Close TensorBoard's files, if some are open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._log_dir = None

    def write_scalar(self, tag, scalar_value, global_step=None):
        """Write a number to TensorBoard; does nothing before `init_writer`."""
        if self._log_dir is not None and self._writer is None:
            # Takes a second, and evaluation does not need it
            from torch.utils.tensorboard import (
                SummaryWriter,
            )

            self._writer = SummaryWriter(log_dir=self._log_dir)
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch, max_epoch):
        """Run epochs `start_epoch` to `max_epoch - 1`; `before_train` may move the start."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for action in self._start_actions:
            action()
        try:
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
            self.after_train()
        finally:  # otherwise a thread of TensorBoard writes on after an error
            self.close_writer()

    def on_start(self, action):
        """Call `action()` in `train`, when `before_train` has not refused to resume what the output
        folder holds.
        """
        self._start_actions.append(action)

    def before_train(self):
        """Hook: before the first epoch."""

    def after_train(self):
        """Hook: after the last epoch."""

    def before_epoch(self):
        """Hook: before each epoch."""

    def after_epoch(self):
        """Hook: after each epoch."""
