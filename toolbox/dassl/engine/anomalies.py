"""Losses and parameters that are not finite end training before a checkpoint is written."""

import math

import torch


class AnomalyChecks:
    """The part of a trainer that notices divergence, and that reads values on a GPU with few waits.

    Attributes:
        divergence_remedy (str): class attribute; the advice in the error about a loss or a parameter that is not
            finite.
    """

    divergence_remedy = "lower OPTIM.LR"

    def __init__(self):
        self._unchecked = []  # numbers of batches, and their losses on a GPU

    def detect_anomaly(self, loss):
        """Raise FloatingPointError unless the loss is finite; for a loss on a GPU `read_together` does it later."""
        batch = getattr(self, "batch_idx", 0) + 1
        if loss.is_cuda:
            self._unchecked.append((batch, loss.detach()))
        elif not torch.isfinite(loss).all():
            self._raise_diverged_loss(loss.item(), batch)

    def read_together(self, tensors=()):
        """Read the values of one-element tensors, and check the losses that are on a GPU, with one wait for it.

        Args:
            tensors (iterable of Tensor): of one device.

        Returns:
            list of float

        Raises:
            FloatingPointError: the loss of a step since the last call is not finite.
        """
        unchecked, self._unchecked = self._unchecked, []
        found = [tensor.detach().float().reshape(()) for tensor in (*(loss for _, loss in unchecked), *tensors)]
        values = torch.stack(found).tolist() if found else []
        for (batch, _), loss in zip(unchecked, values, strict=False):
            if not math.isfinite(loss):
                self._raise_diverged_loss(loss, batch)
        return values[len(unchecked) :]

    def check_finite(self):
        """Raise FloatingPointError if a loss, or a trainable parameter of a registered model, is not finite."""
        learned = {
            f"{name} of {model_name}": torch.isfinite(param).all()
            for model_name, model in self._models.items()
            for name, param in model.named_parameters()
            if param.requires_grad
        }
        for name, finite in zip(learned, self.read_together(learned.values()), strict=True):
            if not finite:
                self._raise_diverged(f"{name} is not finite")

    def _raise_diverged_loss(self, loss, batch):
        self._raise_diverged("the loss is NaN" if math.isnan(loss) else "the loss is infinite", f", batch {batch}")

    def _raise_diverged(self, what, batch=""):
        kept = f"; the checkpoint of epoch {self._saved_epoch} is kept" if self._saved_epoch else ""
        raise FloatingPointError(
            f"{what} at epoch {getattr(self, 'epoch', 0) + 1}{batch}: {self.divergence_remedy}{kept}"
        )
