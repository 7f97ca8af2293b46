"""Learning-rate schedules from ``cfg.OPTIM``, stepped once per epoch.

They are torch's schedulers with a warm-up before them. torch's ``SequentialLR`` does not fit: this
warm-up sets an absolute rate, the same for all parameter groups, and the schedule after it may
count its epochs from the start of training.
"""

from dassl.config.defaults import SCHEDULERS, WARMUPS
from dassl.utils import check_availability
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR


class _BaseWarmupScheduler(LRScheduler):
    """A warm-up of ``warmup_epoch`` (at least 1) epochs, then the scheduler ``successor`` of the
    same optimiser.

    Subclasses define ``warmup_lr``: the learning rates at ``self.last_epoch``, a list with one for
    each group. ``verbose`` is unused; published callers pass it.
    """

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return (
            self.successor.get_last_lr()
            if self.last_epoch >= self.warmup_epoch
            else self.warmup_lr()
        )

    def step(self, epoch=None):
        """Set the next epoch's learning rates; call after the epoch's last ``optimizer.step()``."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self):
        """The state as plain values; that of the successor under ``successor``."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(
            {key: value for key, value in state_dict.items() if key != "successor"}
        )
        self.successor.load_state_dict(state_dict["successor"])


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """All parameter groups have rate ``cons_lr`` for ``warmup_epoch`` epochs, then follow
    ``successor``.
    """

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self):
        return [self.cons_lr] * len(self.base_lrs)


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """``min_lr`` in the first epoch, then base rate * epoch / ``warmup_epoch``, then follows
    ``successor``.
    """

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self):
        if self.last_epoch == 0:
            return [self.min_lr] * len(self.base_lrs)
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(optimizer, optim_cfg):
    """Build the scheduler ``LR_SCHEDULER`` of ``cfg.OPTIM``, after a warm-up if WARMUP_EPOCH is
    above 0.

    ``single_step`` multiplies the rate by GAMMA every STEPSIZE[-1] epochs (every MAX_EPOCH if that
    is below 1), ``multi_step`` at each of STEPSIZE; ``cosine`` reaches 0 at MAX_EPOCH. With
    WARMUP_RECOUNT these epochs are counted from the end of the warm-up. The scheduler's
    ``state_dict()`` has plain values only. Raises UsageError if LR_SCHEDULER or WARMUP_TYPE is
    unknown.
    """
    check_availability(optim_cfg.LR_SCHEDULER, SCHEDULERS)
    check_availability(optim_cfg.WARMUP_TYPE, WARMUPS)
    if optim_cfg.LR_SCHEDULER == "cosine":
        scheduler = CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))
    elif optim_cfg.LR_SCHEDULER == "multi_step":
        scheduler = MultiStepLR(optimizer, optim_cfg.STEPSIZE, optim_cfg.GAMMA)
    else:
        stepsize = optim_cfg.STEPSIZE[-1]
        scheduler = StepLR(
            optimizer, stepsize if stepsize > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA
        )
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        # Stepping it there would change the rates that it starts from
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(
            optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR
        )
    return LinearWarmupScheduler(
        optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR
    )
