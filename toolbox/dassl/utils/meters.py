"""Running averages of the values that a training loop prints."""

from collections import defaultdict

import torch


class AverageMeter:
    """The latest value ``val`` of a series, its ``avg``, ``sum`` and ``count``.

    With ``ema`` the average has exponential decay (0.9) instead of being over all values.
    """

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        """Add ``val`` (a number or a one-element tensor), the mean of ``n`` samples."""
        self.val = val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += val * n
        self.count += n
        self.avg = self.avg * 0.9 + val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """Named averages, printed as ``loss 1.2000 (1.5000) acc 50.0000 (43.7500)``: latest value, then average."""

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Add a dict of numbers or one-element tensors; None is ignored."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
